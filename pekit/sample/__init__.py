"""A drawn miniature of the benchmarks, and small models of the real architectures that know it."""
