"""The issuer's published keys: fetched from one address, beside the handshakes, into a `KeySet`.

Nothing a client sends can bring about more than one request in half a minute, and none of it is in
the request: address, host and headers are fixed at the start. A token is never kept waiting for a
fetch; it is refused until its key is here. A fetch that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from typing import Final

import aiohttp

from falcon_fast._version import __version__
from falcon_fast.errors import KeysUnavailable
from falcon_fast.keys import KeySet
from falcon_fast.tasks import end_tasks

__all__ = ["KeySetFetcher", "fetch"]

log = logging.getLogger(__name__)

REFRESH: Final = 300.0
"""Seconds between two fetches: so long a key that the issuer took back may still count."""

FETCH_TIMEOUT: Final = 5.0
"""Seconds from the first octet sent to the last one read, names and TLS included."""

MAX_DOCUMENT_BYTES: Final = 262_144
"""Bytes of a key set; three RSA keys have 2 KiB."""

UNKNOWN_INTERVAL: Final = 30.0
"""Seconds between two fetches that tokens with unknown keys bring about."""

MAX_REASON: Final = 300
"""Characters of a reason: the library may quote what came."""

RETRY_FIRST: Final = 1.0
RETRY_LAST: Final = 60.0
"""Seconds between attempts while fetches fail."""


async def fetch(url: str, *, tls: ssl.SSLContext | None = None) -> bytes:
    """Fetch a document, without following anything.

    Args:
        url: Where it is.
        tls: What certificates are believed; the system's if None.

    Raises:
        KeysUnavailable: It did not come, in time or at all, or is too large; the text says why.
    """
    try:
        async with (
            asyncio.timeout(FETCH_TIMEOUT),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, ssl=tls or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Compressed, a small answer could become a large one.
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": f"falcon_fast/{__version__}"},
                trust_env=False,
            ) as session,
            # A redirection would let whoever answers choose another host.
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise KeysUnavailable(f"the answer was {response.status}, not 200")
            document = bytearray()
            async for piece in response.content.iter_any():
                document += piece
                if len(document) > MAX_DOCUMENT_BYTES:
                    raise KeysUnavailable(f"it has more than {MAX_DOCUMENT_BYTES} bytes")
            return bytes(document)
    except TimeoutError:
        raise KeysUnavailable(f"no answer within {FETCH_TIMEOUT:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise KeysUnavailable(f"{type(error).__name__}: {error}"[:MAX_REASON]) from error


class KeySetFetcher:
    """Keeps a key set as its issuer publishes it.

    Args:
        url: Where it is published.
        keys: What is kept.
        tls: What certificates are believed; the system's if None.
    """

    def __init__(self, url: str, keys: KeySet, *, tls: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._keys = keys
        self._tls = tls
        self._wanted = asyncio.Event()
        self._last = float("-inf")
        self._delay = RETRY_FIRST
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    async def start(self) -> None:
        """Fetch for the first time, then go on in the background; never fails.

        Without keys every token is refused until a later attempt brings some.
        """
        self._keys.on_unknown = self._wanted.set
        pause = await self._refresh()
        self._task = asyncio.create_task(self._follow(pause), name="key-set")

    async def close(self) -> None:
        """Stop fetching; a second call does nothing."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])

    async def _follow(self, pause: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
                    # However many tokens ask: the next fetch is half a minute after the last.
                    await asyncio.sleep(self._last + UNKNOWN_INTERVAL - loop.time())
            except TimeoutError:
                pass
            pause = await self._refresh()

    async def _refresh(self) -> float:
        """Fetch once; return after how many seconds to do it again."""
        self._last = asyncio.get_running_loop().time()
        self._wanted.clear()
        try:
            count = self._keys.replace(await fetch(self._url, tls=self._tls))
        except (KeysUnavailable, ValueError) as error:
            # The first failure, and what it was; the ones after it say nothing new.
            if not self._failing:
                log.warning(
                    "the keys of tokens could not be fetched; those that are here stay",
                    extra={
                        "url": self._url.partition("?")[0],
                        "error": str(error),
                        "keys": len(self._keys),
                    },
                )
            self._failing = True
            pause, self._delay = self._delay, min(RETRY_LAST, self._delay * 2)
        else:
            if self._failing:
                log.info("the keys of tokens were fetched again", extra={"keys": count})
            self._failing = False
            pause, self._delay = REFRESH, RETRY_FIRST
        return pause * random.uniform(0.8, 1.0)
