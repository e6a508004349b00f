"""Data sets: reading, finding, fetching, verifying them, and serving batches. Importing this imports nothing heavy."""
