"""How fast one client address may open connections: a token bucket for each address.

IPv6 clients are counted by their /64 network.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

from falcon_fast.clock import Clock

__all__ = ["Throttle"]

MAX_ADDRESSES: Final = 65_536
"""Buckets kept at once; full ones say nothing and are dropped first."""


class Throttle:
    """Counts attempts by address.

    Args:
        rate: attempts a second that are always allowed; 0 allows any number.
        burst: attempts allowed at once.
        clock: where the time comes from.
    """

    def __init__(self, rate: float, burst: int, *, clock: Clock) -> None:
        self._rate = rate
        self._burst = float(max(burst, 1))
        self._clock = clock
        # By address: tokens left, and when that was true.
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, address: str) -> float:
        """Take one attempt of an address.

        Returns:
            0.0 when it is allowed, else the seconds after which the next one is.
        """
        if self._rate <= 0:
            return 0.0
        if ":" in address:
            address = _site(address)
        now = self._clock.monotonic()
        # Taken out and put back, so that the order of the dictionary is that of the last attempts.
        tokens, then = self._buckets.pop(address, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        if tokens < 1.0:
            self._buckets[address] = (tokens, now)
            return (1.0 - tokens) / self._rate
        if len(self._buckets) >= MAX_ADDRESSES:
            self._forget(now)
        self._buckets[address] = (tokens - 1.0, now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Drop buckets that have filled up again, or failing that the oldest half."""
        refill = self._burst / self._rate
        kept = {a: b for a, b in self._buckets.items() if now - b[1] < refill}
        if len(kept) >= MAX_ADDRESSES:
            kept = dict(list(kept.items())[MAX_ADDRESSES // 2 :])
        self._buckets = kept


def _site(address: str) -> str:
    """Return the /64 network of an IPv6 address: one subscriber has all of it to choose from."""
    try:
        return ":".join(IPv6Address(address).exploded.split(":")[:4])
    except ValueError:
        return address
