"""The documentation builds as a site whose pages need no other host."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())
# What a browser fetches by itself; a link is followed by people.
FETCHED = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href|srcset)="((?:https?:)?//[^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / CONFIG["project"]["site_dir"]


def pages(entries):
    for entry in entries:
        for value in entry.values():
            yield from pages(value) if isinstance(value, list) else [value]


def test_every_page_has_its_place_in_the_navigation():
    documents = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}

    listed = list(pages(CONFIG["project"]["nav"]))

    assert len(listed) == len(set(listed))
    assert set(listed) == documents


def test_no_page_fetches_anything_from_another_host(site):
    found = {}
    for page in site.rglob("*.html"):
        if addresses := FETCHED.findall(page.read_text()):
            found[page.name] = addresses
    for sheet in site.rglob("*.css"):
        if addresses := re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)\)", sheet.read_text()):
            found[sheet.name] = addresses

    assert len(list(site.rglob("*.html"))) >= len(list(pages(CONFIG["project"]["nav"])))
    assert found == {}
