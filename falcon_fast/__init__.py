"""falcon_fast, a real-time WebSocket server: rooms, presence and fan-out on a native core.

`Falcon` runs a server inside an asyncio program; `falcon_fast.service.Service` says what such a
program may do with it. Both are imported when they are first asked for, so that the command line
need not load a web framework to print its help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from falcon_fast._version import __version__

if TYPE_CHECKING:
    from falcon_fast.app import Falcon
    from falcon_fast.service import Service
    from falcon_fast.settings import Settings

__all__ = ["Falcon", "Service", "Settings", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Falcon":
        from falcon_fast.app import Falcon

        return Falcon
    if name == "Service":
        from falcon_fast.service import Service

        return Service
    if name == "Settings":
        from falcon_fast.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
