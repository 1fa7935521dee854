"""What ``falcon-fast check`` asks of a Redis: whether it can be the bus of these settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from falcon_fast.bus.redis_address import RedisAddress, close_client, describe_error
from falcon_fast.errors import BusUnavailable

__all__ = ["RedisFacts", "facts"]

SHARDED_SINCE: Final = 7
"""The major version of Redis that brought sharded channels."""

_PROBE: Final = "websocket:check"
"""A channel nobody listens to, within what a user of Redis has to be allowed for the bus."""


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What was found.

    Attributes:
        version: as Redis says it; empty if it does not.
        has_shards: whether it has sharded channels.
    """

    version: str
    has_shards: bool


async def facts(url: str) -> RedisFacts:
    """Connect, log in, and try what the bus and the registry need; nothing is written.

    Raises:
        BusUnavailable: something of that does not work; the text says what, and holds no secret.
    """
    address = RedisAddress(url)
    client: Any = address.client()
    try:
        await client.ping()
        await client.publish(_PROBE, b"")
        await client.eval("return 1", 1, "websocket:stats")
        found = await client.info("server")
        if "redis_version" not in found:  # of a cluster: an answer for each server
            found = next(iter(found.values()), {})
        version = str(found.get("redis_version", ""))
        major = version.partition(".")[0]
        return RedisFacts(version, major.isdigit() and int(major) >= SHARDED_SINCE)
    except (AuthenticationError, NoPermissionError) as error:
        raise BusUnavailable(
            f"{address} does not let us in, or not do everything ({describe_error(error)}); its "
            "user needs the channels and keys websocket:*, and the commands of pub/sub and scripts"
        ) from None
    except (RedisError, OSError, TimeoutError) as error:
        raise BusUnavailable(f"{address} does not answer ({describe_error(error)})") from None
    finally:
        await close_client(client)
