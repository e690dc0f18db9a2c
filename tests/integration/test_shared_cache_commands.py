"""`flux2 cache` shows and removes what the workers of a host downloaded."""

import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from shared.cli import main
from shared.sources.cache import FileCache
from shared.sources.remote_file import Pin

DATA = b"an adapter" * 1000


class MemoryFile:
    name, size_bytes, sha256, pin = "hf://o/r/a@main", len(DATA), None, Pin("commit", "1")

    def stream(self, start):
        yield DATA[start:]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUX2_SOURCES_CACHE_DIR", str(tmp_path / "cache"))
    return FileCache(tmp_path / "cache", max_bytes=10**6, open_file=lambda source, pin: MemoryFile())


@pytest.fixture
def flux2(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["flux2", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def fetch(cache):
    return cache.fetch("hf://o/r/a@main", pin="commit:1", size_bytes=len(DATA))


def test_the_list_shows_where_a_file_came_from_and_whether_it_is_in_use(cache, flux2):
    sha256 = hashlib.sha256(DATA).hexdigest()
    with fetch(cache):
        (line,) = map(json.loads, flux2("cache", "list", "--json").splitlines())
        assert line.pop("used_at").endswith("Z")
        assert line == {
            "sha256": sha256,
            "complete": True,
            "size_bytes": len(DATA),
            "in_use": True,
            "sources": ["hf://o/r/a@main"],
        }

    shown = flux2("cache", "list").splitlines()

    assert shown[0].startswith(f"{sha256[:12]}  10.0 kB  ")
    assert shown[0].endswith("  hf://o/r/a@main")
    assert shown[1] == f"1 file, 10.0 kB in {cache.folder.root}"


def test_clear_removes_what_is_old_enough_and_not_in_use(cache, flux2):
    with fetch(cache) as file:
        assert flux2("cache", "clear") == "removed 0 files, 0 B; 1 in use stay, 10.0 kB\n"
    assert flux2("cache", "clear", "--older-than", "1") == "removed 0 files, 0 B\n"
    os.utime(cache.folder.uses / file.sha256, (time.time() - 2 * 86_400,) * 2)

    cleared = json.loads(flux2("cache", "clear", "--older-than", "1", "--json"))

    assert cleared == {"removed": 1, "removed_bytes": len(DATA), "in_use": 0, "in_use_bytes": 0}
    assert flux2("cache", "list") == f"no files in {cache.folder.root} (FLUX2_SOURCES_CACHE_DIR)\n"


def test_a_cache_that_was_never_used_is_empty_and_is_not_created(cache, flux2):
    assert flux2("cache", "list", "--json") == ""
    assert flux2("cache", "clear") == "removed 0 files, 0 B\n"
    assert not cache.folder.root.exists()


def test_the_files_of_a_stack_are_found_by_its_folder(cache, tmp_path):
    fetch(cache).close()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/flux2.env").write_text(f"FLUX2_SOURCES_CACHE_DIR={cache.folder.root}\n")
    command = [sys.executable, "-m", "shared.cli", "cache", "list", "--json", "--data", str(tmp_path / "data")]

    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "FLUX2_SOURCES_CACHE_DIR": "/nowhere"}
    )

    assert json.loads(done.stdout)["sources"] == ["hf://o/r/a@main"]
