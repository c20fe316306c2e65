"""``python -m engine.ground``."""

import sys

from engine.ground.run import main

if __name__ == "__main__":
    sys.exit(main())
