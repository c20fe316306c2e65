"""``python -m models.export``."""

import sys

from models.export.formats import main

if __name__ == "__main__":
    sys.exit(main())
