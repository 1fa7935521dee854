"""The models of requests and answers, and the examples that are told of them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from falcon_fast import envelope, service
from falcon_fast.admin import examples, problems, schemas
from falcon_fast.admin.routes import ROUTES

CONNECTION = service.ConnectionInfo(
    id="c1",
    user_id="alice",
    character_id=2**63 - 1,
    character_name="Alice",
    rooms=("user:alice",),
    created_at=1_700_000_000.0,
    last_ping=1_700_000_000.5,
    node_id="n1",
    remote_address="203.0.113.7",
)
ROOM = service.RoomInfo("user:alice", "personal", "Personal Room", 1, 1_700_000_000.0, 1.0)


def located(model: type[schemas.Request], parts: Mapping[str, object]) -> dict[str, str]:
    """Return what is wrong with a request: place -> message."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(parts)
    problem = problems.of_validation(caught.value)
    assert (problem.status, problem.detail) == (422, "validation failed")
    return {item.location: item.message for item in problem.errors}


def test_the_ten_types_are_those_of_frames() -> None:
    assert set(examples.MESSAGES) == envelope.BROADCAST_TYPES
    for name, (_summary, value) in examples.MESSAGES.items():
        assert schemas.MessageBody.model_validate(value).type == name


def test_a_connection_is_written_as_the_contract_says() -> None:
    assert schemas.ConnectionInfo.of(CONNECTION).to_json() == (
        b'{"id":"c1","user_id":"alice","character_id":9223372036854775807,'
        b'"character_name":"Alice","rooms":["user:alice"],'
        b'"created_at":"2023-11-14T22:13:20.000000Z","last_ping":"2023-11-14T22:13:20.500000Z",'
        b'"node_id":"n1","remote_address":"203.0.113.7"}'
    )


def test_a_room_is_written_as_the_contract_says() -> None:
    details = service.RoomDetails(ROOM, ("c1",))
    assert schemas.RoomDetails.with_members(details).to_json() == (
        b'{"id":"user:alice","type":"personal","name":"Personal Room","member_count":1,'
        b'"created_at":"2023-11-14T22:13:20.000000Z","updated_at":"1970-01-01T00:00:01.000000Z",'
        b'"members":["c1"]}'
    )


@pytest.mark.parametrize("entries", [0, 1, schemas.AT_A_TIME, 3 * schemas.AT_A_TIME + 1])
def test_a_page_is_the_same_in_pieces(entries: int) -> None:
    connections = [schemas.ConnectionInfo.of(CONNECTION)] * entries
    rooms = [schemas.RoomInfo.of(ROOM)] * entries
    partial = schemas.nodes(("n2",))
    for page in (
        schemas.ConnectionList(connections=connections, total=9, next_cursor="[]"),
        schemas.RoomList(rooms=rooms, total=9, partial=partial),
    ):
        pieces = list(page.pieces())
        assert b"".join(pieces) == page.to_json()
        assert all(piece.count(b'"id"') <= schemas.AT_A_TIME for piece in pieces)


def test_keys_without_a_value_are_left_out_and_empty_lists_are_not() -> None:
    assert schemas.RoomList(rooms=[], total=0).to_json() == b'{"rooms":[],"total":0}'
    page = schemas.RoomList(rooms=[], total=0, next_cursor="x", partial=schemas.nodes(("n2",)))
    assert page.to_json() == b'{"rooms":[],"total":0,"next_cursor":"x","partial":["n2"]}'
    assert schemas.nodes(()) is None


def test_w08_status_tells_nothing_that_is_not_named() -> None:
    told = examples.ANSWERS["Status"]
    status = schemas.Status.model_validate({**told, "redis_url": "redis://:secret@host"})
    assert b"secret" not in status.to_json()
    assert schemas.Status.model_validate(told) == status


def test_status_before_the_first_connection_has_a_null() -> None:
    told = examples.ANSWERS["Status"]
    stats = told["stats"]
    assert isinstance(stats, dict)
    status = schemas.Status.model_validate(
        {**told, "stats": {**stats, "last_connection_time": None}}
    )
    assert b'"last_connection_time":null' in status.to_json()
    assert b"websocket_url" not in status.to_json()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.name))
def test_example_of_each_answer_is_one(route: object) -> None:
    assert isinstance(route, type(ROUTES[0]))
    example = examples.ANSWERS[route.answer.__name__]
    assert route.answer.model_validate(example).model_dump(exclude_unset=True) == example
    if route.text is not None:
        assert example["message"] == route.text


@pytest.mark.parametrize("status", examples.ERRORS)
def test_examples_of_each_error_are_problems(status: int) -> None:
    for _summary, value in examples.ERRORS[status].values():
        shown = {"title": problems.TITLES[status], "status": status, "detail": "-", **value}
        assert schemas.ProblemDetails.model_validate(shown).status == status


GOOD_BODY = {"type": "message", "data": {}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"body.type": "required, but absent", "body.data": "required, but absent"}),
        ({**GOOD_BODY, "room": "x"}, {"body.room": "unknown"}),
        ({**GOOD_BODY, "data": []}, {"body.data": "must be a JSON object"}),
        ({**GOOD_BODY, "data": None}, {"body.data": "must be a JSON object"}),
        ({**GOOD_BODY, "data": "{}"}, {"body.data": "must be a JSON object"}),
        ([], {"body": "must be a JSON object"}),
        (None, {"body": "must be a JSON object"}),
        ("message", {"body": "must be a JSON object"}),
    ],
)
def test_w07_j06_bodies_of_another_shape(body: object, expected: dict[str, str]) -> None:
    assert located(schemas.Broadcast, {"path": {}, "query": {}, "body": body}) == expected


@pytest.mark.parametrize("kind", ["", "Message", "ack", "error", "auth", "system", 1, None, []])
def test_w07_types_that_are_none_of_the_ten(kind: object) -> None:
    found = located(
        schemas.Broadcast, {"path": {}, "query": {}, "body": {"type": kind, "data": {}}}
    )
    assert list(found) == ["body.type"]


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({"limit": "0"}, "query.limit"),
        ({"limit": "-1"}, "query.limit"),
        ({"limit": "1001"}, "query.limit"),
        ({"limit": "1000000000"}, "query.limit"),
        ({"limit": "9" * 400}, "query.limit"),
        ({"limit": "abc"}, "query.limit"),
        ({"limit": ""}, "query.limit"),
        ({"limit": "1e2"}, "query.limit"),
        ({"limit": "10.0"}, "query.limit"),
        ({"limit": "1_0"}, "query.limit"),
        ({"limit": " 10"}, "query.limit"),
        ({"limit": "+10"}, "query.limit"),
        ({"limit": "١٠"}, "query.limit"),
        ({"character_id": "-1"}, "query.character_id"),
        ({"character_id": str(2**63)}, "query.character_id"),
        ({"character_id": "x"}, "query.character_id"),
        ({"user_id": ""}, "query.user_id"),
        ({"user_id": "a" * 65}, "query.user_id"),
        ({"user_id": "alice\n"}, "query.user_id"),
        ({"user_id": "*"}, "query.user_id"),
        ({"room_id": "lobby"}, "query.room_id"),
        ({"room": "group:*"}, "query.room"),
        ({"cursor": ""}, "query.cursor"),
        ({"cursor": "A" * 129}, "query.cursor"),
        ({"page": "2"}, "query.page"),
    ],
)
def test_w06_queries_out_of_range(query: dict[str, str], place: str) -> None:
    assert list(located(schemas.ListConnections, {"path": {}, "query": query})) == [place]


def test_queries_within_range() -> None:
    query = {
        "limit": "1000",
        "character_id": str(2**63 - 1),
        "user_id": "a-Z_0",
        "room_id": "group:0123456789abcdef01234567",
        "cursor": "x",
    }
    request = schemas.ListConnections.model_validate({"path": {}, "query": query})
    assert (request.query.limit, request.query.character_id) == (1000, 2**63 - 1)
    assert schemas.ListConnections.model_validate({"path": {}, "query": {}}).query.limit == 100


@pytest.mark.parametrize("kind", ["", "Personal", "system", "personal,group"])
def test_rooms_are_of_two_types(kind: str) -> None:
    assert list(located(schemas.ListRooms, {"path": {}, "query": {"type": kind}})) == ["query.type"]


@pytest.mark.parametrize(
    "room", ["user:", "group:", "group:*", "user:me:x", "group:" + "A" * 24, "a" * 300, "user:é"]
)
def test_z02_names_of_rooms(room: str) -> None:
    found = located(schemas.RoomById, {"path": {"room_id": room}, "query": {}})
    assert list(found) == ["path.room_id"]


def test_values_told_back_are_short_and_clean() -> None:
    problem = problems.invalid("query.x", "bad", "\udcff" + "é" * 1000)
    (item,) = problem.errors
    assert item.value == "?" + "é" * 255 + "…"
    assert problems.invalid("query.x", "bad", {"a": 1}).errors[0].value is None
    assert problems.invalid("query.x", "bad", 2.5).errors[0].value == 2.5


def test_a_hundred_errors_are_enough() -> None:
    body = {**GOOD_BODY, **{f"k{number}": number for number in range(500)}}
    with pytest.raises(ValidationError) as caught:
        schemas.Broadcast.model_validate({"path": {}, "query": {}, "body": body})
    assert len(problems.of_validation(caught.value).errors) == 100
