"""What can go wrong in a macro benchmark.

BenchmarkError
├── PeerMissing    a peer cannot run here: the scenario leaves it out with a line that says why
└── ChildFailed    a process of the benchmark ended or answered with an error
"""

from __future__ import annotations


class BenchmarkError(Exception):
    """The run cannot go on; the text says why."""


class PeerMissing(BenchmarkError):
    """A program or package the peer needs is not there."""


class ChildFailed(BenchmarkError):
    """A server, the generator or the send loop ended, hung or refused a command."""
