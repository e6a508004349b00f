"""The loop, and the one step that it repeats: what learns, in which order, at which rate. Knows no folder.

Imports `data`, `devices`, `errors`, `models`, `ops` and `options`.
"""
