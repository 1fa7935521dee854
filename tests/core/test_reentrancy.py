"""Callbacks that do what callbacks may do: flush, adopt, end their own connection, and raise."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from falcon_fast._core import Core
from falcon_fast.codes import CloseReason, close_table


def core_with(
    *,
    on_message: Callable[[str, bytes, bool], None] = lambda owner, payload, is_text: None,
    on_close: Callable[[str, int, int], None] = lambda owner, reason, code: None,
    on_error: Callable[[BaseException], None] = lambda error: None,
) -> Core[str]:
    """Make a core of four slots, so that a slot is soon used again."""
    return Core(
        on_message=on_message,
        on_close=on_close,
        on_refused=lambda owner, first, number: None,
        on_expire=lambda owner: None,
        on_error=on_error,
        schedule=lambda flush: None,
        close_table=close_table(),
        max_connections=4,
    )


def test_a_slot_is_not_used_again_while_its_last_connection_is_being_closed() -> None:
    ours, theirs = socket.socketpair()
    handles: list[int] = []

    def on_close(owner: str, reason: int, code: int) -> None:
        if owner != "gone":
            return
        core.flush()
        handles.append(core.adopt_socket(ours.detach(), "new"))
        core.join(handles[0], room)

    core = core_with(on_close=on_close)
    room = core.open_room()
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    gone = core.adopt_socket(accepted.detach(), "gone")
    # A reset: the Close frame cannot be sent, so the connection is given up at the next flush.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    core.close(gone, CloseReason.KICKED)
    assert core.rooms_of(handles[0]) == [room]
    assert core.members(room) == ["new"]
    core.close(handles[0], CloseReason.KICKED)
    assert core.member_count(room) == 0
    core.flush()
    assert core.members(room) == []
    core.shutdown()
    theirs.close()
    listener.close()


def test_who_takes_the_slot_of_a_failed_connection_is_not_closed_for_it() -> None:
    closed: list[tuple[str, int]] = []
    errors: list[BaseException] = []
    handles: list[int] = []
    near, far = socket.socketpair()
    next_near, next_far = socket.socketpair()

    def on_message(owner: str, payload: bytes, is_text: bool) -> None:
        core.abort(handles[0], CloseReason.KICKED)
        handles.append(core.adopt_socket(next_near.detach(), "new"))
        raise ValueError("a defect of the callback")

    core = core_with(
        on_message=on_message,
        on_close=lambda owner, reason, code: closed.append((owner, reason)),
        on_error=errors.append,
    )
    handles.append(core.adopt_socket(near.detach(), "old"))
    far.send(b"\x81\x81\0\0\0\0x")
    core.ready()
    assert closed == [("old", CloseReason.KICKED)]
    assert [str(error) for error in errors] == ["a defect of the callback"]
    assert core.owner(handles[1]) == "new"
    core.shutdown()
    far.close()
    next_far.close()
