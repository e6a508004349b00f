"""What is fast, and how that is known: workloads, the time to an accuracy, which times can be trusted, pages, pictures.

Imports `data`, `devices`, `errors`, `models`, `options`, `report`, `text` and `training`.
"""
