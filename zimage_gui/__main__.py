"""`python -m zimage_gui` is the command line."""

import sys

from zimage_gui.cli import main

if __name__ == "__main__":
    sys.exit(main())
