"""The published entry point of pekit.cli.detection."""

import sys

from pekit.cli.detection import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
