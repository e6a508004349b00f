"""What a trained model is good for: the end of a run, scores, predictions, other formats.

Imports `data`, `devices`, `errors`, `files`, `models`, `options`, `report`, `runs` and `training`.
"""
