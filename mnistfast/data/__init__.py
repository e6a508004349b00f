"""Data sets: reading, finding, fetching, verifying them, and serving batches. Importing this imports nothing heavy.

Start with `sources`, whose `load` is the one door; it asks `obtain` for the files of published sets and `paths` for
what a user names. Both read by `idx_set`, `formats` (which lists `npz`, `csv_files` and `cifar`) and `images`, and make
what `datasets` defines. A new format of files is a reader of its own, beside `npz`, and a line in `formats.FORMATS`.

Imports `errors`, `files`, `ops` and `text`.
"""
