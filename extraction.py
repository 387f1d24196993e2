"""The published entry point of pekit.cli.extraction."""

from pekit.start import extraction

if __name__ == "__main__":
    extraction()
else:
    from pekit.cli.extraction import build_parser, main

    __all__ = ["build_parser", "main"]
