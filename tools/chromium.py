"""Find a Chromium on this host, or install it: `python -m tools.chromium`.

The tests of the console and its pictures drive it. Playwright's own download is never used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "microsoft-edge-stable")
_MAC: Final = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")

ADVICE: Final = "no Chromium is on this host; install it (Debian: sudo apt-get install chromium), then run it again"


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome; None if neither is installed."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return found or (str(_MAC) if _MAC.exists() else None)


def main() -> None:
    """Install Debian's package, unless a browser is here; exit with advice where that is not possible."""
    if find_chromium():
        return
    if not shutil.which("apt-get") or os.getuid() != 0:
        raise SystemExit(ADVICE)
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", *command], check=True)


if __name__ == "__main__":
    main()
