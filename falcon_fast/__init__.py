"""falcon_fast, a real-time WebSocket server: rooms, presence and fan-out on a native core."""

from ._version import __version__

__all__ = ["__version__"]
