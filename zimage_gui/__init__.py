"""Train and run Z-Image: a local window and a command line over one engine."""

__version__ = "0.1.0"
