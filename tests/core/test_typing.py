"""The stub of the native core says what the built module has, no more and no less."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Final

import pytest

from falcon_fast import _core
from falcon_fast.codes import CloseReason

from ..model.core import Twin
from ..support import ROOT

PACKAGE: Final = ROOT / "falcon_fast"
STUB: Final = ast.parse((PACKAGE / "_core.pyi").read_text(encoding="utf-8"))
SOURCE: Final = (PACKAGE / "_core.pyx").read_text(encoding="utf-8")


def classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}


def functions(body: list[ast.stmt]) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def is_property(function: ast.FunctionDef) -> bool:
    return [ast.unparse(item) for item in function.decorator_list] == ["property"]


def shape(function: ast.FunctionDef) -> list[tuple[str, str, str | None]]:
    """Return name, kind and default of each parameter, as the stub has them."""
    args = function.args
    assert not args.posonlyargs
    assert args.vararg is None
    assert args.kwarg is None
    positional = [None] * (len(args.args) - len(args.defaults)) + [*args.defaults]
    return [
        *[
            (arg.arg, "positional", default_of(node))
            for arg, node in zip(args.args, positional, strict=True)
        ],
        *[
            (arg.arg, "keyword", default_of(node))
            for arg, node in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        ],
    ]


def default_of(node: ast.expr | None) -> str | None:
    return None if node is None else repr(ast.literal_eval(node))


def built_shape(signature: inspect.Signature) -> list[tuple[str, str, str | None]]:
    """Return the same of what was built."""
    kinds: dict[object, str] = {
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
        inspect.Parameter.POSITIONAL_ONLY: "positional",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
    }
    return [
        (
            parameter.name,
            kinds[parameter.kind],
            None if parameter.default is parameter.empty else repr(parameter.default),
        )
        for parameter in signature.parameters.values()
    ]


def methods() -> Iterator[tuple[str, str]]:
    for owner in ("Core", "Link"):
        for name, function in functions(classes()[owner].body).items():
            if name != "__init__" and not is_property(function):
                yield owner, name


def test_names_of_the_module() -> None:
    named = {node.name for node in STUB.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    named |= {
        node.target.id
        for node in STUB.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    imported = {"asyncio", "enum", "errno", "os", "socket"}
    built = {name for name in vars(_core) if not name.startswith("_")}
    assert built - imported == {name for name in named if not name.startswith("_")}


@pytest.mark.parametrize("owner", ["Core", "Link", "Verdict"])
def test_names_of_a_class(owner: str) -> None:
    body = classes()[owner].body
    named = set(functions(body))
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named.add(node.target.id)
        elif isinstance(node, ast.Assign):
            named |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    built = {name for name in vars(getattr(_core, owner)) if not name.startswith("_")}
    inherited = {"connection_made"} if owner == "Link" else set()
    assert built | inherited == {name for name in named if not name.startswith("_")}


@pytest.mark.parametrize(("owner", "name"), list(methods()))
def test_signatures(owner: str, name: str) -> None:
    function = functions(classes()[owner].body)[name]
    built = getattr(getattr(_core, owner), name)
    assert shape(function) == built_shape(inspect.signature(built))
    if owner == "Core":
        assert built.__doc__.strip(), "says nothing of itself"


def test_signature_of_scan_json() -> None:
    function = functions(STUB.body)["scan_json"]
    assert shape(function) == built_shape(inspect.signature(_core.scan_json))


def test_signature_of_the_constructor() -> None:
    # A built class does not tell its constructor's signature: the source does.
    found = re.search(r"    def __init__\((.*?)\) -> None:", SOURCE, re.DOTALL)
    assert found is not None
    source = functions(ast.parse(f"def __init__({found[1]}) -> None: ...").body)["__init__"]
    assert shape(functions(classes()["Core"].body)["__init__"]) == shape(source)


@pytest.mark.parametrize(
    "name", [n for n, f in functions(classes()["Core"].body).items() if is_property(f)]
)
def test_properties_can_be_read_only(name: str) -> None:
    built = inspect.getattr_static(_core.Core, name)
    assert inspect.isgetsetdescriptor(built)
    with pytest.raises(AttributeError):
        setattr(_core.Core.__new__(_core.Core), name, 1)


def test_verdicts() -> None:
    stub = {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in classes()["Verdict"].body
        if isinstance(node, ast.Assign)
    }
    assert {verdict.name: verdict.value for verdict in _core.Verdict} == stub
    assert stub == {"SENT": 0, "QUEUED": 1, "SLOW": 2, "CLOSED": 3}


def test_the_reasons_the_core_raises_are_those_of_the_table() -> None:
    assert _core.REASONS_RAISED
    for name, ordinal in _core.REASONS_RAISED.items():
        assert CloseReason[name] == ordinal


def test_the_twin_has_what_the_core_has() -> None:
    """All but what only counts what it cost, or goes by places, which the twin has none of."""
    others = {"sends", "flushes", "histograms", "owners_from"}
    core = {name for name in vars(_core.Core) if not name.startswith("_")} - others
    twin = {name for name in vars(Twin) if not name.startswith(("_", "link_"))}
    counters = {"frames_in", "messages_in", "bytes_in", "bytes_out"}
    counters |= {"deliveries", "refused", "adopted", "compressed_deliveries"}
    counters |= {"compressions", "compression_in", "compression_out"}
    counters |= {"inflations", "inflation_in", "inflation_out"}
    assert twin | counters == core
    for name in twin - {"count", "epoll_fd", "deflating"}:
        mine = built_shape(inspect.signature(getattr(Twin, name)))
        its = built_shape(inspect.signature(getattr(_core.Core, name)))
        # What the core calls conn is a handle in the twin, which has connections, too.
        assert [("conn" if p[0] == "handle" else p[0], *p[1:]) for p in mine] == its
