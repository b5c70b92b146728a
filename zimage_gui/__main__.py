"""`python -m zimage_gui` is the command line."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until `main` listens, Ctrl-C just ends it: a traceback of half an import helps no one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from zimage_gui.cli import main

if __name__ == "__main__":
    sys.exit(main())
