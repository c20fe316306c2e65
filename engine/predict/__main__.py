"""``python -m engine.predict``."""

import sys

from engine.predict.run import main

if __name__ == "__main__":
    sys.exit(main())
