"""The published entry point of pekit.cli.detection."""

from pekit.start import detection

if __name__ == "__main__":
    detection()
else:
    from pekit.cli.detection import build_parser, main

    __all__ = ["build_parser", "main"]
