"""Starts the window. Everything else is `python -m zimage_gui`."""

import sys

from zimage_gui.cli import main

if __name__ == "__main__":
    sys.exit(main(["gui", *sys.argv[1:]]))
