"""What the admin listener serves beside the API, and what documents say of it."""

from __future__ import annotations

import hashlib
import html
import re

import pytest

from falcon_fast.admin import pages
from falcon_fast.admin.routes import ROUTES

from ..support import ROOT

STATIC = ROOT / "admin" / "static"
PAGES = (pages.INDEX, pages.DOCS, pages.OPENAPI_JSON, pages.OPENAPI_YAML, pages.METRICS)


def test_assets_are_there_and_no_other_scripts_or_styles() -> None:
    served = {path for path, _media_type in pages.ASSETS.values()}
    assert {path.resolve() for path in served} == {
        path for path in STATIC.rglob("*") if path.suffix in {".js", ".css"}
    }


def test_swagger_ui_is_what_its_readme_says() -> None:
    folder = STATIC / "swagger-ui"
    sums = dict(
        re.findall(
            r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.M
        )
    )
    assert set(sums) == {"swagger-ui-bundle.js", "swagger-ui.css"}
    for name, expected in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert not list(folder.glob("*.map"))


@pytest.mark.parametrize("text", [pages.DOCS_HTML, pages.index(ROUTES, PAGES)])
def test_w03_pages_have_nothing_inline_and_nothing_from_elsewhere(text: str) -> None:
    assert "http:" not in text
    assert "https:" not in text
    assert "style=" not in text
    assert "<style" not in text
    assert re.findall(r"<script(?! src=)|\son\w+=", text) == []


def test_index_lists_every_route() -> None:
    text = html.unescape(pages.index(ROUTES, PAGES))
    for route in ROUTES:
        assert f"<td>{route.method} {route.path}</td><td>{route.summary}</td>" in text
    for page in PAGES:
        assert f"GET {page.path}</a>" in text


def reference() -> str:
    return (ROOT / "docs" / "reference" / "admin-api.md").read_text(encoding="utf-8")


def test_reference_has_the_table_of_routes() -> None:
    rows = re.findall(r"^\| `([A-Z]+) (/\S*?)`.*\| (public|super admin) \|", reference(), re.M)
    assert rows == [
        (route.method, route.path, route.role.replace("_", " ")) for route in ROUTES
    ] + [("GET", page.path, "public") for page in PAGES]


def test_reference_has_the_texts() -> None:
    text = reference()
    for route in ROUTES:
        for told in (route.text, route.missing):
            assert told is None or f"`{told}`" in text


def test_reference_has_every_parameter() -> None:
    text = reference()
    for route in ROUTES:
        for place in ("path", "query"):
            if place in route.request.model_fields:
                model = route.request.model_fields[place].annotation
                for name in getattr(model, "model_fields", {}):
                    assert f"`{name}`" in text or f"{{{name}}}" in text
