"""Examples in the document: a message of each of the ten types, answers, and every error.

They are plain values; a test holds each against the model it is an example of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ANSWERS", "BODIES", "ERRORS", "MESSAGES", "PARAMETERS"]

Example = tuple[str, dict[str, object]]
"""A summary, and the value."""

CONNECTION_ID: Final = "8c3f9d3e-6d43-4a0b-9d0e-0f6b8f7f2a11"
USER_ID: Final = "2f1b6a52-54cb-4d3a-8f0c-6a5d1b2c3d4e"
GROUP_ID: Final = "64f0c0ffee0123456789abcd"
NODE_ID: Final = "b1d2c3e4-5f60-4718-8293-a4b5c6d7e8f9"
CURSOR: Final = "AQAAAAAAAABkq83vASNFZ4mrzQ"
TIME: Final = "2026-01-02T03:04:05.123456Z"
CHARACTER_ID: Final = 90000001
TOKEN_ID: Final = "e1b9c2a0-77f4-4f0e-8d4e-5a1f6b7c8d9e"
REVOCATION_ID: Final = "0c6f1e2d-3a4b-4c5d-8e6f-7a8b9c0d1e2f"
ISSUED: Final = 1767323045
EXPIRES: Final = 1767409445

PARAMETERS: Final[Mapping[str, object]] = {
    "connection_id": CONNECTION_ID,
    "user_id": USER_ID,
    "room_id": f"group:{GROUP_ID}",
    "revocation_id": REVOCATION_ID,
}
"""By the names of path parameters."""

MESSAGES: Final[Mapping[str, Example]] = {
    "message": (
        "A message to a person",
        {"type": "message", "data": {"text": "Hello from admin", "priority": "high"}},
    ),
    "user_profile_update": (
        "A profile of the user has changed",
        {
            "type": "user_profile_update",
            "data": {
                "user_id": USER_ID,
                "character_id": CHARACTER_ID,
                "profile": {"character_name": "Updated Name", "last_login": TIME},
            },
        },
    ),
    "group_membership_change": (
        "The user has joined a group",
        {
            "type": "group_membership_change",
            "data": {
                "user_id": USER_ID,
                "group_id": GROUP_ID,
                "group_name": "Fleet Commanders",
                "joined": True,
            },
        },
    ),
    "system_notification": (
        "An announcement",
        {
            "type": "system_notification",
            "data": {
                "title": "System Maintenance",
                "message": "The system will be offline from 02:00 to 04:00 UTC",
                "severity": "warning",
                "scheduled_time": "2026-09-05T02:00:00Z",
            },
        },
    ),
    "presence": (
        "Somebody has come online",
        {"type": "presence", "data": {"user_id": USER_ID, "status": "online"}},
    ),
    "notification": (
        "Something a user should look at",
        {
            "type": "notification",
            "data": {
                "title": "System Alert",
                "message": "Your account requires attention",
                "action_url": "/profile",
            },
        },
    ),
    "room_update": (
        "An announcement in a room",
        {
            "type": "room_update",
            "data": {
                "action": "room_announcement",
                "title": "Room Maintenance",
                "message": "This room will be offline for maintenance at 3 PM UTC",
            },
        },
    ),
    "backend_status": (
        "How a backend does",
        {"type": "backend_status", "data": {"service": "market", "status": "degraded"}},
    ),
    "critical_alert": (
        "Something that cannot wait",
        {
            "type": "critical_alert",
            "data": {"title": "Login is down", "message": "Nobody can log in", "code": 1201},
        },
    ),
    "service_recovery": (
        "It works again",
        {"type": "service_recovery", "data": {"service": "login", "downtime_seconds": 312}},
    ),
}
"""A body of each type."""

_CONNECTION: Final = {
    "id": CONNECTION_ID,
    "user_id": USER_ID,
    "character_id": CHARACTER_ID,
    "character_name": "Alice",
    "rooms": [f"user:{USER_ID}", f"group:{GROUP_ID}"],
    "created_at": TIME,
    "last_ping": TIME,
    "node_id": NODE_ID,
    "remote_address": "203.0.113.7",
}
_ROOM: Final = {
    "id": f"group:{GROUP_ID}",
    "type": "group",
    "name": "Group: Fleet Commanders",
    "member_count": 1,
    "created_at": TIME,
    "updated_at": TIME,
}


def _sent(message: str, **target: str) -> dict[str, object]:
    return {
        "success": True,
        "message_id": "0d9f1c7e-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
        "recipients_count": 1,
        "timestamp": TIME,
        "message": message,
        **target,
    }


REVOCATIONS: Final[Mapping[str, Example]] = {
    "token": ("One token", {"token_id": TOKEN_ID, "expires_at": EXPIRES}),
    "user": ("All tokens a user has now", {"user_id": USER_ID}),
    "user_before": (
        "Tokens of a user issued before a time",
        {"user_id": USER_ID, "issued_before": ISSUED},
    ),
    "all": ("All tokens issued before a time", {"all": True, "issued_before": ISSUED}),
}

BODIES: Final[Mapping[str, Mapping[str, Example]]] = {
    "MessageBody": {
        name: (f"{name}: {summary}", value) for name, (summary, value) in MESSAGES.items()
    },
    "RevocationBody": REVOCATIONS,
}
"""By the names of the models of bodies."""

REVOCATION: Final = {
    "id": REVOCATION_ID,
    "user_id": USER_ID,
    "issued_before": ISSUED,
    "expires_at": EXPIRES,
    "created_at": TIME,
}

ANSWERS: Final[Mapping[str, dict[str, object]]] = {
    "ConnectionList": {"connections": [_CONNECTION], "total": 101, "next_cursor": CURSOR},
    "ConnectionAnswer": {"connection": _CONNECTION},
    "CloseResult": {
        "success": True,
        "connection_id": CONNECTION_ID,
        "message": "Connection closed successfully",
    },
    "RoomList": {"rooms": [_ROOM], "total": 1},
    "RoomAnswer": {"room": {**_ROOM, "members": [CONNECTION_ID]}},
    "BroadcastResult": _sent("Message broadcast successfully"),
    "ConnectionResult": _sent("Direct message sent successfully", connection_id=CONNECTION_ID),
    "UserResult": _sent("User message sent successfully", user_id=USER_ID),
    "RoomResult": _sent("Room message sent successfully", room_id=f"group:{GROUP_ID}"),
    "RevocationList": {"revocations": [REVOCATION], "total": 1},
    "RevocationResult": {
        "success": True,
        "revocation": REVOCATION,
        "message": "Tokens revoked successfully",
    },
    "WithdrawResult": {
        "success": True,
        "revocation_id": REVOCATION_ID,
        "message": "Revocation withdrawn successfully",
    },
    "Status": {
        "module": "websocket",
        "status": "healthy",
        "stats": {
            "total_connections": 1200,
            "active_connections": 1,
            "total_rooms": 2,
            "messages_processed": 4711,
            "messages_broadcast": 90210,
            "last_connection_time": TIME,
        },
        "message": "WebSocket module is running",
        "node_id": NODE_ID,
        "nodes": 1,
    },
}
"""By the names of the models of answers."""

ERRORS: Final[Mapping[int, Mapping[str, Example]]] = {
    400: {
        "not_json": ("The body is not JSON", {"detail": "not valid JSON at line 1 column 2"}),
        "empty": ("There is no body", {"detail": "the body is empty"}),
    },
    401: {
        "no_token": ("There is no token", {"detail": "Authentication required"}),
        "bad_token": ("The token is refused", {"detail": "Invalid authentication token"}),
    },
    403: {
        "not_admin": ("Not a super administrator", {"detail": "Super admin access required"}),
        "banned": ("The user is banned", {"detail": "User is banned"}),
        "cross_site": (
            "The cookie of a user whose browser shows a page of somebody else",
            {"detail": "A write with the cookie must come from a page of this server"},
        ),
    },
    404: {"not_found": ("There is none", {})},
    408: {"slow": ("The body did not come in time", {"detail": "the body took too long to come"})},
    413: {"too_large": ("The body is over 1 MiB", {"detail": "the body is larger than 1 MiB"})},
    415: {
        "not_json": ("Another kind of body", {"detail": "the body must be application/json"}),
    },
    422: {
        "body": (
            "The body is JSON of another shape",
            {
                "detail": "validation failed",
                "errors": [
                    {
                        "message": "required, but absent",
                        "location": "body.type",
                        "value": None,
                    },
                    {"message": "unknown", "location": "body.room", "value": "everybody"},
                ],
            },
        ),
        "query": (
            "A parameter is out of range",
            {
                "detail": "validation failed",
                "errors": [
                    {
                        "message": "Input should be less than or equal to 1000",
                        "location": "query.limit",
                        "value": 5000,
                    }
                ],
            },
        ),
    },
    500: {"internal": ("A defect of the server", {"detail": "Internal Server Error"})},
    503: {
        "directory": (
            "It cannot be found out who is a super administrator",
            {"detail": "The directory of users and groups does not answer; nothing was done"},
        ),
        "bus": (
            "A message reached only a part of the cluster",
            {
                "detail": "Not sent to other nodes: the bus does not answer. Connections of this "
                "node got the message"
            },
        ),
        "store": (
            "Tokens are revoked on this node only, so far",
            {
                "detail": "In force on this node, but not kept: the store of revocations does not "
                "answer. Other nodes are told as soon as it does"
            },
        ),
    },
}
"""By status: what is different from error to error; titles and statuses are added."""
