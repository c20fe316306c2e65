"""``python -m engine.embed``."""

import sys

from engine.embed.run import main

if __name__ == "__main__":
    sys.exit(main())
