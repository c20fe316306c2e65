"""``python -m datasets.prepare``."""

import sys

from datasets.prepare.run import main

if __name__ == "__main__":
    sys.exit(main())
