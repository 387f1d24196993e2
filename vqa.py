"""The published entry point of pekit.cli.vqa."""

from pekit.start import vqa

if __name__ == "__main__":
    vqa()
else:
    from pekit.cli.vqa import build_parser, main

    __all__ = ["build_parser", "main"]
