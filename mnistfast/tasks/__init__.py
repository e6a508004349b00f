"""What trains, from options to a finished run: `train`, `finetune`, `search`. Imports all of the above."""
