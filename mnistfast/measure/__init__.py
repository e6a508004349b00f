"""What is fast, and how that is known: workloads, the time to an accuracy, and what was measured as pages and pictures.

Imports `data`, `devices`, `errors`, `models`, `options`, `report` and `training`.
"""
