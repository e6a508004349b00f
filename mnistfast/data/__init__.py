"""Data sets: reading, finding, fetching, verifying them, and serving batches. Importing this imports nothing heavy.

Start with `sources`, whose `load` is the one door; it asks `obtain` for the files of published sets and `paths` for
what a user names. Both read by `idx_set`, `formats` and `images`, and make what `datasets` defines.
"""
