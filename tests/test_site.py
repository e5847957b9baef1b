"""The documentation site, without a network. Builds it: run by `make test-slow`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import copy_parts

ROOT = Path(__file__).parent.parent
PARTS = ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "dit_moe", "eval")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
    return subprocess.run(command, cwd=source, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_pages(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.with_suffix(".html").name).exists()
    for name in ("index", "CONTRIBUTING", "CHANGELOG"):
        assert (site / f"{name}.html").exists()


@pytest.mark.slow
def test_a_page_of_the_reference_for_every_room(site):
    rooms = [path.parent.name for path in ROOT.glob("dit_moe/*/__init__.py")]
    assert len(rooms) > 10
    for room in rooms:
        assert f'id="dit_moe.{room}"' in (site / f"reference/dit_moe.{room}.html").read_text()
    page = (site / "reference" / "dit_moe.moe.html").read_text()
    assert 'id="dit_moe.moe.dispatch.dispatch"' in page
    assert "Sends each assignment" in page
    assert 'id="eval.fid.main"' in (site / "reference" / "eval.html").read_text()


@pytest.mark.slow
def test_nothing_is_fetched(site):
    elsewhere = r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//|<link[^>]+stylesheet[^>]+//"
    pages = list(site.glob("**/*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if re.search(elsewhere, page.read_text())] == []


@pytest.mark.slow
def test_broken_links_fail(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    copy_parts(PARTS, source)
    with (source / "docs" / "ema.md").open("a") as page:
        page.write("\n[no page](none.md) [no heading](scale.md#none) ![no picture](none.png)\n")
    done = build(source, tmp_path / "site")
    assert done.returncode == 1
    for link in ("none.md", "scale.md#none", "none.png"):
        assert f"'ema.md' contains a link '{link}'" in done.stderr
