"""PeKit, the Personalization Toolkit: training-free personalization of LVLMs (arXiv 2502.02452)."""

__version__ = "0.1.0"
