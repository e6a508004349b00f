"""Runs on disk: their folder, their checkpoints and the state that they go on from. Imports `files`, `models`."""
