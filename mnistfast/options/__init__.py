"""The options of the commands: what there is, how a command line or a file is read, how a command ends.

Imports `errors`, `files`, `stop`, `terminal` and `text`; torch is not among what comes with it.
"""
