"""``python -m engine.report``."""

import sys

from engine.report.run import main

if __name__ == "__main__":
    sys.exit(main())
