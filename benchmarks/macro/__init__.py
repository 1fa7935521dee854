"""Macro benchmarks: real sockets, a load generator in C in its own process, kernel accounting."""
