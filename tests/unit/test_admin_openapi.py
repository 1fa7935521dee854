"""The OpenAPI document says what the table of routes and the models say, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from falcon_fast import envelope
from falcon_fast.admin import examples, openapi, pages, problems, routes
from falcon_fast.admin.routes import ROUTES, Route
from falcon_fast.admin.schemas import Answer, Request

PAGES = (pages.DOCS, pages.OPENAPI_JSON, pages.OPENAPI_YAML, pages.METRICS)
BUILT = openapi.build(ROUTES, PAGES, cookie_name="the_cookie")
DOCUMENT: dict[str, Any] = json.loads(openapi.to_json(BUILT))


def operation(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][route.path][route.method.lower()]
    return found


def test_it_is_valid_openapi_3_1_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.1"
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_yaml_says_the_same_as_json() -> None:
    assert yaml.safe_load(openapi.to_yaml(BUILT)) == DOCUMENT


@pytest.mark.parametrize(
    "value",
    [
        {"yes": 1, "1": [], "": {}, "a: b": None, "#": "- x", "line\nbreak": "\u2028"},
        {"list": [[1, [2]], {"a": [True]}, "x"]},
        {"big": 2**63 - 1, "small": -1.5, "text": "'\"\\: {}"},
    ],
)
def test_yaml_of_awkward_values(value: dict[str, object]) -> None:
    assert yaml.safe_load("\n".join(openapi._yaml(value, 0))) == value


def test_it_lists_exactly_the_table() -> None:
    listed = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert listed == {(route.method, route.path) for route in ROUTES} | {
        ("GET", page.path) for page in PAGES
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.name))
def test_operation_is_the_row(route: Route) -> None:
    found = operation(route)
    assert (found["operationId"], found["summary"]) == (route.name, route.summary)
    assert set(found["responses"]) == {"200", *map(str, route.statuses)}
    expected: list[object] = [] if route.role == "public" else [{"bearer": []}, {"cookie": []}]
    assert found.get("security", []) == expected
    answer = found["responses"]["200"]["content"]["application/json"]
    assert answer["schema"] == {"$ref": f"#/components/schemas/{route.answer.__name__}"}
    in_path = [one["name"] for one in found.get("parameters", []) if one["in"] == "path"]
    assert [f"{{{name}}}" for name in in_path] == [
        part for part in route.path.split("/") if part.startswith("{")
    ]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.name))
def test_every_error_has_examples(route: Route) -> None:
    for status in route.statuses:
        content = operation(route)["responses"][str(status)]["content"]
        shown = content["application/problem+json"]["examples"]
        assert shown
        for example in shown.values():
            assert example["value"]["title"] == problems.TITLES[status]
            assert example["value"]["status"] == status
            if status == 404:
                assert example["value"]["detail"] == route.missing


MESSAGES = [route for route in ROUTES if "MessageBody" in str(route.request.model_fields)]


def test_a_revocation_has_an_example_of_each_kind() -> None:
    (route,) = (route for route in ROUTES if route.has_body and route not in MESSAGES)
    content = operation(route)["requestBody"]["content"]["application/json"]
    assert list(content["examples"]) == ["token", "user", "user_before", "all"]
    validator = Draft202012Validator(DOCUMENT["components"]["schemas"]["RevocationBody"])
    for example in content["examples"].values():
        validator.validate(example["value"])
    for wrong in (
        {},
        {"token_id": "a", "user_id": "b"},
        {"token_id": "a", "issued_before": 1},
        {"all": False},
        {"user_id": "a b"},
        {"user_id": "a", "reason": "x"},
        {"token_id": None},
    ):
        assert not validator.is_valid(wrong)


@pytest.mark.parametrize("route", MESSAGES, ids=lambda route: str(route.name))
def test_every_message_has_an_example_of_each_of_the_ten_types(route: Route) -> None:
    body = operation(route)["requestBody"]
    assert body["required"] is True
    (content,) = body["content"].items()
    assert content[0] == "application/json"
    assert set(content[1]["examples"]) == envelope.BROADCAST_TYPES
    for name, example in content[1]["examples"].items():
        assert example["value"] == examples.MESSAGES[name][1]
    schema = DOCUMENT["components"]["schemas"]["MessageBody"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["type", "data"]
    assert set(schema["properties"]["type"]["enum"]) == envelope.BROADCAST_TYPES


def test_parameters_of_a_listing() -> None:
    (listing,) = (route for route in ROUTES if route.name == "list_connections")
    found = {one["name"]: one for one in operation(listing)["parameters"]}
    assert list(found) == ["user_id", "character_id", "room_id", "room", "limit", "cursor"]
    assert found["limit"]["schema"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "default": 100,
    }
    assert found["character_id"]["schema"] == {"type": "integer", "format": "int64", "minimum": 0}
    assert not any(one["required"] for one in found.values())


def test_cookie_is_named_as_configured_and_left_out_when_off() -> None:
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert schemes["cookie"] == {"type": "apiKey", "in": "cookie", "name": "the_cookie"}
    document = json.loads(openapi.to_json(openapi.build(ROUTES, PAGES, cookie_name=None)))
    assert list(document["components"]["securitySchemes"]) == ["bearer"]
    assert document["paths"]["/websocket/broadcast"]["post"]["security"] == [{"bearer": []}]


def test_a_part_of_a_request_that_is_no_model_is_a_mistake() -> None:
    class Odd(Request):
        path: int

    async def odd(desk: routes.Desk, request: Odd) -> Answer:
        return Answer()

    row = routes._route("GET", "/odd", Odd, odd, Answer, "Odd")
    with pytest.raises(TypeError, match="path of Odd must be a model"):
        openapi._parameters(row, "path")


def test_no_operation_is_named_twice() -> None:
    names = [op["operationId"] for item in DOCUMENT["paths"].values() for op in item.values()]
    assert len(names) == len(set(names)) == len(ROUTES) + len(PAGES)
