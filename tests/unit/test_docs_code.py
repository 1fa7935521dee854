"""Code in the documents: it compiles, what is marked runs, commands and links lead somewhere.

Every ```python block must compile. A block after the line ``<!-- run -->`` is run as well, in a
fresh namespace and an empty folder; it fails like a test, so it should assert what it claims.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..support import ROOT

RUN_MARK = "<!-- run -->"

FENCE = re.compile(
    r"^(?P<mark><!-- run -->[ \t]*\n\n?)?"
    r"^(?P<fence>`{3,})(?P<language>[\w+-]*)[ \t]*\n(?P<code>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)[^)]*\)")
MAKE = re.compile(r"(?<![\w-])make ([a-z][a-z-]*)\b")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document."""

    place: str
    language: str
    code: str
    runs: bool


def documents() -> list[Path]:
    """List the documents that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str, *, name: str) -> list[Block]:
    """Cut the fenced blocks out of a document; ``place`` is its name and the line of the code."""
    return [
        Block(
            place=f"{name}:{text.count(chr(10), 0, match.start('code')) + 1}",
            language=match["language"],
            code=match["code"],
            runs=match["mark"] is not None,
        )
        for match in FENCE.finditer(text)
    ]


def compile_block(block: Block) -> object:
    """Compile a block, in which ``await`` may stand outside a function."""
    return compile(block.code, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def run_block(block: Block) -> None:
    """Run a block to its end, on an event loop of its own if it awaits."""
    code = compile_block(block)
    assert inspect.iscode(code)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    if code.co_flags & inspect.CO_COROUTINE:

        async def main() -> None:
            await eval(code, namespace)

        asyncio.run(main())
    else:
        exec(code, namespace)


DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in documents()}
BLOCKS = [block for name, text in DOCUMENTS.items() for block in blocks(text, name=name)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_block_compiles(block: Block) -> None:
    compile_block(block)


@pytest.mark.parametrize(
    "block", [block for block in PYTHON if block.runs], ids=lambda block: block.place
)
def test_marked_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_block(block)


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_every_run_mark_belongs_to_a_python_block(name: str) -> None:
    marked = [block for block in blocks(DOCUMENTS[name], name=name) if block.runs]
    assert [block.language for block in marked] == ["python"] * len(marked)
    # Documents that explain the mark name it in the middle of a line.
    lines = [line.strip() for line in DOCUMENTS[name].splitlines()]
    assert lines.count(RUN_MARK) == len(marked)


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_links_lead_to_files(name: str) -> None:
    folder = (ROOT / name).parent
    broken = [link for link in LINK.findall(DOCUMENTS[name]) if not (folder / link).exists()]
    assert broken == []


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_make_commands_exist(name: str) -> None:
    targets = set(
        re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    )
    shells = [b.code for b in blocks(DOCUMENTS[name], name=name) if b.language != "python"]
    inline = re.findall(r"`(make [^`\n]*)`", DOCUMENTS[name])
    named = {target for text in [*shells, *inline] for target in MAKE.findall(text)}
    assert sorted(named - targets) == []


EXAMPLE = """\
text

```python
x = 1
```

<!-- run -->
```python
import asyncio
await asyncio.sleep(0)
assert {value} == 1
```

```console
$ make
```
"""


def test_blocks_are_found_with_their_line_and_mark() -> None:
    found = blocks(EXAMPLE, name="a.md")
    assert [(block.place, block.language, block.runs) for block in found] == [
        ("a.md:4", "python", False),
        ("a.md:9", "python", True),
        ("a.md:15", "console", False),
    ]


def test_a_marked_block_can_fail() -> None:
    run_block(blocks(EXAMPLE.replace("{value}", "1"), name="a.md")[1])
    with pytest.raises(AssertionError):
        run_block(blocks(EXAMPLE.replace("{value}", "2"), name="a.md")[1])
