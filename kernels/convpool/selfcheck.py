"""The door to the self-check: `python -m convpool.selfcheck`."""

import os
import sys

import torch

from convpool.testing.selfcheck import main

if __name__ == "__main__":
    if not torch.cuda.is_available():  # for the processes that check: Triton reads it when it is first imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    sys.exit(main())
