"""The OpenAPI document, made from the table of routes and the models that validate.

Version 3.1.1 of the specification: https://spec.openapis.org/oas/v3.1.1
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import orjson
from openapi_pydantic import (
    Components,
    Header,
    Info,
    License,
    MediaType,
    OpenAPI,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Response,
    SecurityScheme,
    Tag,
)
from openapi_pydantic.util import construct_open_api_with_schema_class
from pydantic import BaseModel

from falcon_fast._version import __version__
from falcon_fast.admin import examples, problems
from falcon_fast.admin.pages import OPENAPI_JSON, OPENAPI_YAML, Page
from falcon_fast.admin.routes import Route
from falcon_fast.admin.schemas import ProblemDetails

__all__ = ["build", "to_json", "to_yaml"]

REF: Final = "#/components/schemas/{model}"

DESCRIPTION: Final = """\
See who is connected and in which rooms, send messages, and close connections.

Every operation but the public ones needs the token of a super administrator: a user of whom any
character is an active member of the super administrators' group (`system_name: super_admin`). The
token is read from `Authorization: Bearer`, else from the cookie. With the cookie, what changes or
sends something must come from a page of this server.

Checks are made in this order: authentication, authorisation, validation. Every error is
`application/problem+json`.
"""

_TAGS: Final = {
    "connections": "Who is connected.",
    "rooms": "Where they are.",
    "messages": "What they are told.",
    "revocations": "Which tokens are no longer accepted.",
    "server": "How the node does, and this document.",
}


def build(routes: Sequence[Route], pages: Iterable[Page], *, cookie_name: str | None) -> OpenAPI:
    """Make the document.

    Args:
        routes: rows of the table.
        pages: what is served beside them.
        cookie_name: the cookie that may carry the token; None if none may.
    """
    paths: dict[str, PathItem] = {}
    for route in routes:
        item = paths.setdefault(route.path, PathItem())
        setattr(item, route.method.lower(), _operation(route, with_cookie=cookie_name is not None))
    for page in pages:
        paths[page.path] = PathItem(get=_page(page))
    schemes: dict[str, SecurityScheme | Reference] = {
        "bearer": SecurityScheme(type="http", scheme="bearer", bearerFormat="JWT")
    }
    if cookie_name is not None:
        schemes["cookie"] = SecurityScheme.model_validate(
            {"type": "apiKey", "in": "cookie", "name": cookie_name}
        )
    document = OpenAPI(
        openapi="3.1.1",
        info=Info(
            title="falcon_fast admin API",
            version=__version__,
            description=DESCRIPTION,
            license=License(name="Apache-2.0", identifier="Apache-2.0"),
        ),
        tags=[Tag(name=name, description=text) for name, text in _TAGS.items()],
        paths=paths,
        components=Components(securitySchemes=schemes),
    )
    models: list[type[BaseModel]] = [ProblemDetails]
    for route in routes:
        models += [route.answer, *([_part(route, "body")] if route.has_body else [])]
    return construct_open_api_with_schema_class(document, list(dict.fromkeys(models)))


def _operation(route: Route, *, with_cookie: bool) -> Operation:
    responses: dict[str, Response | Reference] = {
        "200": Response(
            description=route.text or "Success",
            headers=_headers(),
            content={
                "application/json": _content(
                    route.answer, example=examples.ANSWERS[route.answer.__name__]
                )
            },
        )
    }
    for status in route.statuses:
        responses[str(status)] = _error(status, route)
    operation = Operation(
        operationId=route.name,
        summary=route.summary,
        tags=[_tag(route)],
        parameters=[*_parameters(route, "path"), *_parameters(route, "query")] or None,
        responses=responses,
    )
    if route.description:
        operation.description = route.description
    if route.role != "public":
        ways = ("bearer", "cookie") if with_cookie else ("bearer",)
        operation.security = [{way: []} for way in ways]
    if route.has_body:
        operation.requestBody = RequestBody(
            required=True,
            content={
                "application/json": _content(
                    _part(route, "body"),
                    examples={
                        name: {"summary": summary, "value": value}
                        for name, (summary, value) in examples.BODIES[
                            _part(route, "body").__name__
                        ].items()
                    },
                )
            },
        )
    return operation


def _tag(route: Route) -> str:
    about = route.path.split("/")[2]
    if route.has_body and about != "revocations":
        return "messages"
    return about if about in _TAGS else "server"


def _part(route: Route, name: str) -> type[BaseModel]:
    model = route.request.model_fields[name].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"{name} of {route.request.__name__} must be a model")
    return model


def _parameters(route: Route, place: str) -> list[Parameter | Reference]:
    if place not in route.request.model_fields:
        return []
    schema = _part(route, place).model_json_schema(ref_template=REF)
    found: list[Parameter | Reference] = []
    for name, described in schema.get("properties", {}).items():
        # A parameter that is absent is no null: it cannot be spelled in a URL.
        options = [one for one in described.pop("anyOf", ()) if one.get("type") != "null"]
        merged = {**(options[0] if options else {}), **described}
        description = merged.pop("description", None)
        merged.pop("title", None)
        if merged.get("default", 0) is None:
            del merged["default"]
        parameter = {
            "name": name,
            "in": place,
            "required": name in schema.get("required", ()),
            "description": description,
            "schema": merged,
        }
        if place == "path":
            parameter["example"] = examples.PARAMETERS[name]
        found.append(Parameter.model_validate(parameter))
    return found


def _error(status: int, route: Route) -> Response:
    title = problems.TITLES[status]
    shown = {
        name: {
            "summary": summary,
            "value": {
                "title": title,
                "status": status,
                **value,
                **({"detail": route.missing} if status == 404 else {}),
            },
        }
        for name, (summary, value) in examples.ERRORS[status].items()
        if name not in {"bus", "store"} or name == _partial(route)
    }
    return Response(
        description=title,
        headers=_headers(),
        content={problems.CONTENT_TYPE: _content(ProblemDetails, examples=shown)},
    )


def _partial(route: Route) -> str | None:
    """Return the name of the example of a write that did not reach all nodes."""
    if _tag(route) == "revocations":
        return "store" if route.writes else None
    return "bus" if route.has_body else None


def _headers() -> dict[str, Header | Reference]:
    return {
        "X-Request-ID": Header.model_validate(
            {
                "description": "The request's id, as in the log.",
                "required": True,
                "schema": {"type": "string"},
            }
        )
    }


def _content(model: type[BaseModel], **shown: object) -> MediaType:
    return MediaType.model_validate({"schema": {"$ref": REF.format(model=model.__name__)}, **shown})


def _page(page: Page) -> Operation:
    is_document = page in (OPENAPI_JSON, OPENAPI_YAML)
    return Operation(
        operationId=page.name,
        summary=page.summary,
        tags=["server"],
        responses={
            "200": Response(
                description="Success",
                headers=_headers(),
                content={
                    page.media_type: MediaType.model_validate(
                        {"schema": {"type": "object" if is_document else "string"}}
                    )
                },
            )
        },
    )


def to_json(document: OpenAPI) -> bytes:
    """Write the document as JSON."""
    return orjson.dumps(_plain(document), option=orjson.OPT_INDENT_2)


def to_yaml(document: OpenAPI) -> bytes:
    """Write the document as YAML 1.2, in block style."""
    return ("\n".join(_yaml(_plain(document), 0)) + "\n").encode()


def _plain(document: OpenAPI) -> dict[str, object]:
    plain: dict[str, object] = json.loads(
        document.model_dump_json(by_alias=True, exclude_none=True, exclude_unset=True),
        parse_float=_number,
    )
    return plain


def _number(text: str) -> int | float:
    """Read a number; the library holds limits as floats, also those of integers."""
    number = float(text)
    return int(number) if number.is_integer() else number


_PLAIN_KEY: Final = re.compile(r"[A-Za-z_/$][A-Za-z0-9_/$.{}-]*")
# Words that YAML 1.1 readers take for something else than a text.
_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


def _yaml(value: Mapping[str, object] | Sequence[object], depth: int) -> list[str]:
    """Return the lines of an object or array; texts are written as JSON, which YAML includes."""
    indent = "  " * depth
    lines: list[str] = []
    pairs = (
        [(f"{_yaml_key(key)}:", item) for key, item in value.items()]
        if isinstance(value, Mapping)
        else [("-", item) for item in value]
    )
    for lead, item in pairs:
        if isinstance(item, dict | list) and item:
            lines.append(f"{indent}{lead}")
            lines += _yaml(item, depth + 1)
        else:
            lines.append(f"{indent}{lead} {json.dumps(item, ensure_ascii=False)}")
    return lines


def _yaml_key(key: str) -> str:
    if _PLAIN_KEY.fullmatch(key) and key.lower() not in _WORDS:
        return key
    return json.dumps(key, ensure_ascii=False)
