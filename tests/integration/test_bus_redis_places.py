"""The Redis bus where Redis is more than one plain server: TLS, users, sentinels, a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis as redis_py
from redis.crc import key_slot

from falcon_fast.bus import Target
from falcon_fast.bus.redis_address import RedisAddress, close_client, describe_error
from falcon_fast.bus.shards import shard_of

from ..support.certificate import make_certificate
from ..support.party import ROOM, Party, party, until
from ..support.redis_server import SENTINEL_NAME, Failover, RedisCluster, RedisServer

pytestmark = pytest.mark.integration


async def talk(ann: Party, bob: Party) -> None:
    before = len(bob.numbers)
    ann.say(before)
    await until(lambda: len(bob.numbers) == before + 1, "a message")


async def test_tls_a_user_and_a_database(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with RedisServer(tmp_path / "r", user="ann", password="p@ss/word", tls=certificate) as server:
        trusting = f"?ssl_ca_certs={certificate.certificate}&ssl_check_hostname=false"
        url = server.url.removesuffix("/0") + "/3" + trusting
        async with party(url) as ann, party(url) as bob:
            await talk(ann, bob)
            # A large message comes and goes in several records.
            frame = b'{"type":"message","data":{"x":"%b"}}' % (b"x" * 500_000)
            ann.bus.publish(Target.ALL, "", frame)
            await until(lambda: bob.delivered[-1][2] == frame, "a large message")
        client = RedisAddress(url).client()
        assert await client.set("key", "value")
        assert server.info("keyspace").keys() == {"db3"}
        await close_client(client)
        with pytest.raises(redis_py.ConnectionError) as caught:
            await RedisAddress(server.url).connect()
        assert describe_error(caught.value) == "ConnectionError"


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(tmp_path / "r", {"unixsocket": str(path)}):
        async with party(f"unix://{path}?db=2") as ann, party(f"unix://{path}") as bob:
            await talk(ann, bob)


async def test_x07_a_failover_by_the_sentinel(tmp_path: Path) -> None:
    failover = await asyncio.to_thread(Failover, tmp_path)
    with failover:
        url = f"redis+sentinel://127.0.0.1:{failover.sentinel.port}/{SENTINEL_NAME}"
        async with party(url) as ann, party(url) as bob:
            await talk(ann, bob)
            before = failover.primary
            after = await asyncio.to_thread(failover.fail_over)
            await until(lambda: ann.bus.is_available and bob.bus.is_available, "back", 8.0)
            await talk(ann, bob)
            assert after is not before
            assert after.subscribers("websocket:rooms") == 2
            client = RedisAddress(url).client()
            assert await client.set("key", "value")
            await close_client(client)


async def test_x07_a_replica_is_not_taken_for_the_master(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "a") as master, RedisServer(tmp_path / "b") as server:
        async with party(server.url) as ann:
            await asyncio.to_thread(server.command, "REPLICAOF", "127.0.0.1", str(master.port))
            # What is published at a replica stays there, so it must not go unnoticed.
            await until(lambda: not ann.bus.is_available, "it is noticed", 8.0)
            await asyncio.to_thread(server.command, "REPLICAOF", "NO", "ONE")
            await until(lambda: ann.bus.is_available, "back")


async def test_shards_on_one_server(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with (
            party(server.url, routing="sharded") as ann,
            party(server.url, routing="sharded") as bob,
        ):
            follow = bob.bus.follow(ROOM)
            assert follow is not None
            await follow
            await until(lambda: not ann.bus.reaches_all(Target.ROOM), "shards in use")
            await talk(ann, bob)
            assert server.command("PUBSUB", "SHARDCHANNELS") == [
                b"websocket:shard:%d" % shard_of(ROOM)
            ]
            server.kill_subscribers()
            ann.say(7)
            await until(lambda: bob.losses, "the loss")
            assert bob.missed == 1
            async with party(server.url) as carl:
                for one in (ann, bob):
                    await talk(one, carl)
                await talk(carl, bob)


async def test_shards_on_a_cluster_follow_their_slots(tmp_path: Path) -> None:
    cluster = await asyncio.to_thread(RedisCluster, tmp_path)
    with cluster:
        hosts = ",".join(f"{host}:{port}" for host, port in cluster.addresses[:2])
        url = f"redis+cluster://{hosts}"
        rooms = [f"group:{number:024x}" for number in range(60)]
        async with (
            party(url, routing="sharded") as ann,
            party(url, routing="sharded") as bob,
        ):
            await until(lambda: ann.bus.is_available and bob.bus.is_available, "links to all")
            bob.rooms.update(rooms)
            follows = [follow for room in rooms if (follow := bob.bus.follow(room)) is not None]
            await asyncio.gather(*follows)
            await until(lambda: not ann.bus.reaches_all(Target.ROOM), "shards in use")
            for number, room in enumerate(rooms):
                ann.say(number, room)
            await until(lambda: len(bob.numbers) == len(rooms), "all messages")
            assert sorted(bob.numbers) == list(range(60))
            heard = [server.command("PUBSUB", "SHARDCHANNELS") for server in cluster.servers]
            assert all(heard), "each server has a part"

            # The slot of one room's shard goes to another server.
            channel = f"websocket:shard:{shard_of(rooms[0])}"
            slot = key_slot(channel.encode())
            old = cluster.owner(channel)
            new = next(server for server in cluster.servers if server is not old)
            ident = new.command("CLUSTER", "MYID")
            for server in (new, old, *cluster.servers):
                server.command("CLUSTER", "SETSLOT", slot, "NODE", ident)
            ann.say(1000, rooms[0])
            await until(
                lambda: channel.encode() in new.command("PUBSUB", "SHARDCHANNELS"), "followed", 8.0
            )
            await asyncio.sleep(1.5)
            ann.say(1001, rooms[0])
            await until(lambda: 1001 in bob.numbers, "the next message", 8.0)
            assert ann.bus.is_available
            # Each one of them arrived or is accounted for.
            await until(lambda: (1000 in bob.numbers) or bob.missed == 1, "accounted for", 8.0)
