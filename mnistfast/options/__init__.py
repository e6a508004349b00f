"""The options of the commands: each is one field of a dataclass, which has its default, its help and what it may be.

    fields.py      option(): what a field says of its option; Options: what each command's dataclass does with that
    bounds.py      what numbers may be
    shared.py      the options that several commands have
    device.py      the names of devices
    presets.py     what each model trains with unless told otherwise
    learning.py    TrainConfig, and what it shares with fine-tuning: LearnConfig
    finetuning.py  FinetuneConfig
    commands.py    the other commands' options
    values.py      a text of the command line, or what YAML made of one, as a value of an option's type
    parser.py      a command line, or a YAML file, as the options that it names
    process.py     how a command ends: exit codes, streams, signals

Imports `errors`, `files`, `stop`, `terminal` and `text`. torch does not come with it: `--help` is quick.
"""
