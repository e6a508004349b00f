"""What is fast, and how that is known: workloads, the time to an accuracy, and results as files."""
