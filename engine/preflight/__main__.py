"""``python -m engine.preflight``."""

import sys

from engine.preflight.checks import main

if __name__ == "__main__":
    sys.exit(main())
