"""One script per claim about speed: ``python -m benchmarks.<name> --help`` from the repository's root."""
