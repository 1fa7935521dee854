"""`/docs` in a real browser, and the commands of the guide for operators in a real shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Request, Response, async_playwright

from falcon_fast.admin.routes import ROUTES

from ..support import ROOT, require
from ..support.admin import Admin
from ..support.client import Client, Wire
from ..support.server import ServerProcess
from .peers import serve

pytestmark = pytest.mark.integration

PICTURE: Final = ROOT / "docs" / "images" / "admin-docs.png"
GUIDE: Final = ROOT / "docs" / "howto" / "operate-with-curl.md"

FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)


@pytest.mark.browser
async def test_docs_show_every_operation_from_files_of_this_server(
    server: ServerProcess, tmp_path: Path
) -> None:
    admin = Admin(server)
    told: list[str] = []
    asked: list[str] = []

    def request(one: Request) -> None:
        asked.append(one.url)

    def response(one: Response) -> None:
        if one.status >= 400:
            told.append(f"{one.status} {one.url}")

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=require("chromium", "chromium-browser", "google-chrome"),
            args=list(FLAGS),
        )
        page = await browser.new_page(viewport={"width": 1000, "height": 900})
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", request)
        page.on("response", response)
        await page.goto(f"{admin.url}/docs")
        await page.wait_for_selector(".opblock")
        shown = await page.locator(".opblock .opblock-summary-path").all_inner_texts()
        # Line breaks for the reader are no part of the path.
        paths = [re.sub(r"[\s\u200b]", "", path) for path in shown]
        assert sorted(path for path in paths if path.startswith("/websocket/")) == sorted(
            route.path for route in ROUTES
        )
        await page.screenshot(path=tmp_path / "docs.png")

        # An operation opens, shows its examples, and can be tried with a token.
        await page.click(".auth-wrapper .authorize")
        await page.fill(".auth-container input >> nth=0", admin.token)
        await page.click(".auth-container .authorize >> nth=0")
        await page.click(".auth-container .btn-done >> nth=0")
        await page.click("#operations-messages-broadcast .opblock-summary-control")
        block = page.locator("#operations-messages-broadcast")
        await block.locator(".try-out__btn").click()
        options = (
            await block.locator(".examples-select select").first.locator("option").all_inner_texts()
        )
        assert len(options) >= 10
        await block.locator(".execute").click()
        answer = await block.locator(
            ".live-responses-table tbody .response-col_description"
        ).inner_text()
        assert '"message": "Message broadcast successfully"' in answer
        await browser.close()
    assert told == []
    assert [url for url in asked if not url.startswith((admin.url, "data:"))] == []
    assert (tmp_path / "docs.png").stat().st_size > 10_000


def test_the_picture_in_the_documents_is_small() -> None:
    assert PICTURE.read_bytes().startswith(b"\x89PNG")
    assert PICTURE.stat().st_size <= 150 * 1024


def console_blocks() -> list[str]:
    return re.findall(r"^```console\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def pattern(expected: str) -> str:
    """Make a pattern of what a guide shows, in which `...` stands for anything."""
    return re.escape(expected).replace(re.escape("..."), "[^\n]*")


def test_the_guide_with_curl(tmp_path: Path) -> None:
    require("curl")
    with serve(tmp_path) as served:
        admin_url = served.program.wait_for(r"admin on (http://\S+?)/")[1]
        alice = Client(Wire(("127.0.0.1", int(re.findall(r":(\d+)/", served.url)[0]))))
        alice.open(token=served.token_of("Alice"))
        alice.enter()
        script: list[str] = []
        expected: list[str] = []
        for line in "".join(console_blocks()).splitlines():
            if not line.startswith("$ "):
                expected.append(pattern(line))
            elif line.startswith("$ URL="):
                script.append(f"URL={admin_url}")
            elif line.startswith("$ TOKEN="):
                script.append(f"TOKEN={served.token_of('Admin')}")
            else:
                script.append(line.removeprefix("$ "))
                if "curl" in line and "$(" not in line:
                    script.append("echo")
        (loop,) = re.findall(
            r"^```bash\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S
        )
        done = subprocess.run(
            [require("bash"), "-eu", "-c", "\n".join([*script, loop])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        *lines, listing = done.stdout.splitlines()
        assert len(lines) == len(expected) >= 8
        for line, wanted in zip(lines, expected, strict=True):
            assert re.fullmatch(wanted, line), (line, wanted)
        assert listing == '{"connections":[],"total":0}'
        heard = [alice.hear()["type"] for _ in range(3)]
        assert heard == ["room_update", "notification", "system_notification"]
        assert alice.closing()[0] == 4403
        alice.close()
