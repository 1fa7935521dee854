"""Benchmarks: `python -m benchmarks run SCENARIO` measures the server against its peers."""
