"""The door to tuning from a shell: `python -m convpool.tune`.

Nothing imports this module: `convpool.tune` is the function.
"""

import sys

from convpool.tuning_command import main

if __name__ == "__main__":
    sys.exit(main())
