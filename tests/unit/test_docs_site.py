"""The documentation builds as a site whose pages need no other host, and whose links and pictures are sound."""

import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documents import PAGES, ROOT, headings, links

CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())
# What a browser fetches by itself; a link is followed by people.
FETCHED = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href|srcset)="((?:https?:)?//[^"]+)"')
#: Every other host that the documentation links to.
HOSTS = {
    "c2pa.org",
    "developers.cloudflare.com",
    "docs.sglang.io",
    "docs.vllm.ai",
    "docs.wasabi.com",
    "github.com",
    "huggingface.co",
    "keda.sh",
    "keepachangelog.com",
    "modelcontextprotocol.io",
    "www.backblaze.com",
    "www.rfc-editor.org",
    "www.standardwebhooks.com",
}


class Page(HTMLParser):
    """The addresses and the anchors of a page of the site."""

    def __init__(self, file):
        super().__init__()
        self.addresses, self.anchors = [], set()
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src"):
                self.addresses.append(value)
            elif name in ("id", "name"):
                self.anchors.add(value)


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


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor_that_exist(site):
    site = site.resolve()
    found = {file: Page(file) for file in site.rglob("*.html")}
    broken = []

    for file, page in found.items():
        for address in page.addresses:
            url = urlsplit(address)
            if url.scheme or url.netloc:
                continue
            start = site if url.path.startswith("/") else file.parent
            target = (start / unquote(url.path).lstrip("/")).resolve() if url.path else file
            is_whole = target.exists() and target.is_relative_to(site)
            if not is_whole or (
                url.fragment and target in found and unquote(url.fragment) not in found[target].anchors
            ):
                broken.append((str(file.relative_to(site)), address))

    assert sum(len(page.addresses) for page in found.values()) > 1000
    assert broken == []


def test_every_link_of_the_files_leads_to_a_file_and_a_heading_that_exist():
    broken, count = [], 0
    for page in PAGES:
        for address in links(page):
            url = urlsplit(address)
            if url.scheme:
                continue
            count += 1
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if not target.exists() or (url.fragment and url.fragment not in headings(target)):
                broken.append((str(page.relative_to(ROOT)), address))

    assert count > 100
    assert broken == []


def test_links_to_other_hosts_are_listed():
    found = {url.netloc for page in PAGES for address in links(page) if (url := urlsplit(address)).scheme}

    assert found == HOSTS


def test_every_row_of_the_comparison_has_a_source():
    rows = [line for line in (ROOT / "docs/comparison.md").read_text().splitlines() if line.startswith("| ")][1:]

    assert len(rows) >= 10
    for row in rows:
        _, _, *others = row.strip("|").split("|")
        assert any("](https://" in cell for cell in others), row[:60]


def test_a_command_makes_each_picture_and_a_page_shows_it():
    rows = re.findall(
        r"^\| `docs/images/([^`]+)` \| `([^`]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    pictures = {file.name for file in (ROOT / "docs/images").iterdir()}
    shown = {Path(address).name for page in PAGES for address in links(page)}

    made = {name: command for pattern, command in rows for name in pictures if re.fullmatch(_as_regex(pattern), name)}

    assert pictures == set(made)
    assert pictures <= shown
    for command in made.values():
        program, *words = command.split()
        assert program == ".venv/bin/flux2" or (ROOT / f"{words[1].replace('.', '/')}.py").is_file(), command


def _as_regex(pattern):
    return re.escape(pattern).replace(r"\*", ".*")
