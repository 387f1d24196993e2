"""The published entry point of pekit.cli.vqa."""

import sys

from pekit.cli.vqa import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
