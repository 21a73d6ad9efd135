"""The command line: a client of the served tree like any other, with no way in of its own."""

from wanixfs.cli.app import main

__all__ = ["main"]
