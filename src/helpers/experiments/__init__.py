"""The benchmarks in which something is trained; in all else like those of :mod:`helpers.benchmarks`."""
