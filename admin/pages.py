"""What the admin listener serves beside the API: the index, the document and its reader, metrics.

All of it is public and none of it takes anything from the request. The scripts and styles of
``/docs`` come from this package: the page works without the Internet, and under a content security
policy that allows nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from falcon_fast._version import __version__
from falcon_fast.admin.routes import Route

__all__ = ["ASSETS", "DOCS", "INDEX", "METRICS", "OPENAPI_JSON", "OPENAPI_YAML", "Page", "index"]

_STATIC: Final = Path(__file__).parent / "static"


@dataclass(frozen=True, slots=True)
class Page:
    """A page or file that is not an answer of the API.

    Attributes:
        path: where it is served.
        name: of the operation, as in the document.
        media_type: of its content.
        summary: one line for the document and the index.
    """

    path: str
    name: str
    media_type: str
    summary: str


INDEX: Final = Page("/", "get_index", "text/html", "What is served here")
DOCS: Final = Page("/docs", "get_docs", "text/html", "The API's document, to read and to try")
OPENAPI_JSON: Final = Page(
    "/openapi.json", "get_openapi_json", "application/json", "The API's document as JSON"
)
OPENAPI_YAML: Final = Page(
    "/openapi.yaml", "get_openapi_yaml", "application/yaml", "The API's document as YAML"
)
METRICS: Final = Page("/metrics", "get_metrics", "text/plain", "Metrics for Prometheus")

ASSETS: Final[Mapping[str, tuple[Path, str]]] = {
    f"/static/{name}": (_STATIC / name, media_type)
    for name, media_type in {
        "admin.css": "text/css",
        "docs.js": "text/javascript",
        "swagger-ui/swagger-ui.css": "text/css",
        "swagger-ui/swagger-ui-bundle.js": "text/javascript",
    }.items()
}
"""By their paths: the file, and its type. Only what is named here is served."""

_HEAD: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
"""

DOCS_HTML: Final = (
    _HEAD.format(title="falcon_fast admin API")
    + """\
<link rel="stylesheet" href="static/swagger-ui/swagger-ui.css">
<link rel="stylesheet" href="static/admin.css">
</head>
<body>
<main id="docs">
<noscript>The document is at <a href="openapi.json">openapi.json</a>.</noscript>
</main>
<script src="static/swagger-ui/swagger-ui-bundle.js"></script>
<script src="static/docs.js"></script>
</body>
</html>
"""
)


def index(routes: Iterable[Route], pages: Iterable[Page]) -> str:
    """Write the page that lists what is served.

    Args:
        routes: rows of the table.
        pages: what is served beside them.
    """
    rows = [
        f'<tr><td><a href="{page.path.lstrip("/") or "."}">GET {page.path}</a></td>'
        f"<td>{html.escape(page.summary)}</td><td>public</td></tr>"
        for page in pages
    ]
    rows += [
        f"<tr><td>{route.method} {html.escape(route.path)}</td>"
        f"<td>{html.escape(route.summary)}</td><td>{route.role.replace('_', ' ')}</td></tr>"
        for route in routes
    ]
    return (
        _HEAD.format(title="falcon_fast admin")
        + '<link rel="stylesheet" href="static/admin.css">\n</head>\n<body class="index">\n'
        + f"<h1>falcon_fast {__version__}</h1>\n<p>The admin listener.</p>\n<table>\n"
        + "<thead><tr><th>request</th><th>what it is for</th><th>role</th></tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>\n</body>\n</html>\n"
    )
