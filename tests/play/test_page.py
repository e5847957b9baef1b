"""The page in a headless browser. Needs gradio, playwright and a Chromium, and skips without."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dit_moe.config import SampleConfig
from dit_moe.data.classes import Classes, write_classes
from dit_moe.play.drawer import Drawer
from dit_moe.play.player import Player
from dit_moe.play.serve import served
from dit_moe.training.loop import train
from tests.tiny import tiny

pytestmark = [
    pytest.mark.slow,
    # Those of the packages under the page are not ours.
    pytest.mark.filterwarnings("ignore"),
]
ROOT = Path(__file__).parent.parent.parent
NAMES = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# As from a terminal: what is started in the background ignores Ctrl-C.
COMMAND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("dit_moe.play", run_name="__main__")
"""
PATIENCE = 120_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    pytest.importorskip("gradio", reason="needs pip install 'dit-moe[play]'")
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    config = tiny(steps=3, learning_rate=0.05, log_every=3)
    train(dataclasses.replace(config, sample=SampleConfig(steps=3)), workdir)
    write_classes(workdir, Classes(NAMES, (1,) * 10))
    return workdir


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium on this machine: playwright install chromium brings one")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, url: str):
    """The page in the browser, and the addresses that it asks for."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    try:
        yield page, asked
    finally:
        page.close()


def pictures(page) -> list[str]:
    """The addresses of the pictures, which tell their content."""
    return page.locator(".gallery-item img").evaluate_all("all => all.map(one => one.src)")


def press(page, name: str) -> None:
    """Presses a button and waits until something else is drawn."""
    before = pictures(page)
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_function(
        "before => { const all = [...document.querySelectorAll('.gallery-item img')]"
        ".map(one => one.src); return all.length && all.join() != before; }",
        arg=",".join(before),
    )


def captions(page) -> list[str]:
    return page.locator(".gallery-item .caption-label").all_inner_texts()


def test_a_visit(run, browser, monkeypatch):
    looked_up: set[object] = set()
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: (looked_up.add(host), look_up(host, *rest, **more))[1],
    )
    player = Player([Drawer(run, ema=False, batch_size=4)])
    with served(player, "127.0.0.1", 0) as url, opened(browser, url) as (page, asked):
        # A class by name.
        page.get_by_label("classes, in turn").click()
        page.get_by_role("option", name="seven", exact=True).click()
        page.keyboard.press("Escape")
        page.get_by_label("pictures, up to 64").fill("3")
        press(page, "Draw")
        assert captions(page) == ["nought", "seven", "nought"]
        before = pictures(page)
        assert len(set(before)) == 3
        page.get_by_label("seed", exact=True).fill("1")
        press(page, "Draw")
        assert set(pictures(page)).isdisjoint(before)

        # The experts of its calls.
        page.get_by_text("experts of block 1 at call 2 of 3").wait_for()
        masks = page.locator("img.mask")
        page.wait_for_function("document.querySelectorAll('img.mask').length > 1")
        shown = masks.evaluate_all("all => all.map(one => one.src)")
        number = page.get_by_label("number input for call of the network")
        number.fill("1")
        number.press("Enter")
        page.get_by_text("experts of block 1 at call 1 of 3").wait_for()
        assert masks.evaluate_all("all => all.map(one => one.src)") != shown
        assert page.get_by_text("expert 0", exact=True).count() <= 1

        # A walk, and the brush.
        page.get_by_role("tab", name="Walk").click()
        press(page, "Walk")
        assert captions(page) == ["0% of the way", "50% of the way", "100% of the way"]
        page.get_by_role("tab", name="Paint").click()
        page.get_by_role("button", name="Paint", exact=True).click()
        page.get_by_text("the picture to paint on is empty; allowed: draw").wait_for()
        page.locator(".gallery-item button").first.click()
        page.wait_for_timeout(3000)  # the editor tells nobody when its picture is there
        box = page.locator("canvas").first.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 60, middle[1] + 20, steps=5)
        page.mouse.up()
        page.wait_for_timeout(1000)
        press(page, "Paint")
        assert captions(page) == ["nought", "seven", "nought"]

        # What cannot be is told in a sentence, and what is shown stays.
        kept = pictures(page)
        page.get_by_role("tab", name="Draw").click()
        page.get_by_label("guidance scale").fill("-1")
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_text("guidance.scale is -1.0; allowed: 0 to 1000").wait_for()
        assert pictures(page) == kept

        # Nothing is fetched from elsewhere, and no file of the run is given away.
        assert {
            address for address in asked if not address.startswith((url, "data:", "blob:"))
        } == set()
        for path in (run / "config.json", ROOT / "pyproject.toml"):
            with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
                urllib.request.urlopen(f"{url}gradio_api/file={path}")
    assert looked_up <= {"127.0.0.1", b"127.0.0.1", "localhost"}


def test_two_runs_side_by_side(run, browser, tmp_path):
    shutil.copytree(run, tmp_path / "twin")
    player = Player([Drawer(r, ema=False, batch_size=4) for r in (run, tmp_path / "twin")])
    with served(player, "127.0.0.1", 0) as url, opened(browser, url) as (page, _):
        page.get_by_label("pictures, up to 64").fill("2")
        press(page, "Draw")
        assert page.get_by_role("heading").all_inner_texts() == ["digits", "twin"]
        page.wait_for_function("document.querySelectorAll('.gallery-item img').length == 4")
        first, second = pictures(page)[:2], pictures(page)[2:]
        assert [a.split("/")[-2] for a in first] == [a.split("/")[-2] for a in second]
        page.get_by_text("experts of block 1 at call 2 of 3").nth(1).wait_for()


def test_the_command_serves_until_it_is_stopped(run):
    line = [sys.executable, "-c", COMMAND, "--workdir", str(run), "--port", "0"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            # The average of a short run is told to be young, before.
            told = next(line for line in process.stdout if line.startswith("The page: "))
            assert told.startswith("The page: http://127.0.0.1:")
            with urllib.request.urlopen(told.split()[2]) as answer:
                assert b"gradio" in answer.read()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert errors.endswith("Stopped. Nothing is half-written.\n")
