"""The operators' side: an HTTP listener of its own, which sees plain values only.

It is imported as ``falcon_fast.admin`` and holds the only code that knows aiohttp.
"""

from __future__ import annotations
