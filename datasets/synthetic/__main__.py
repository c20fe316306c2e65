"""``python -m datasets.synthetic``."""

import sys

from datasets.synthetic.world import main

if __name__ == "__main__":
    sys.exit(main())
