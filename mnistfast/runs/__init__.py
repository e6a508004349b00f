"""Runs on disk: their folder, their checkpoints, and what of a training is written so that it can go on.

Knows no data set and no task. Imports `errors`, `files`, `models`, `stop` and `text`.
"""
