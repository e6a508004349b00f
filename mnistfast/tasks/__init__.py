"""What trains, from options to a finished run: `train`, `finetune` and `search`.

A task prepares a training (`prepared`), and `run` takes it to its end in a folder. Imports all that commands do not:
`data`, `devices`, `errors`, `files`, `models`, `options`, `report`, `results`, `runs`, `stop` and `training`.
"""
