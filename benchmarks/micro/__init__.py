"""The micro benchmarks: one question a file, without sockets (pytest-benchmark)."""
