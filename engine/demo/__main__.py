"""``python -m engine.demo``."""

import sys

from engine.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
