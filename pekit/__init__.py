"""PeKit, the Personalization Toolkit: training-free personalization of large vision-language models (arXiv 2502.02452)."""

__version__ = "0.1.0"
