"""``python -m engine.compare``."""

import sys

from engine.compare.run import main

if __name__ == "__main__":
    sys.exit(main())
