"""Write the libraries of the console, and of its tests, into the repository: `python -m tools.vendor_console`.

They come from the npm registry, by the `npm` that is installed. To take another version, change `LIBRARIES`: the
messages say which digests differ. Users of the package need no npm, because the files are in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_CONSOLE: Final = "api/console/files/vendor"
_AXE: Final = "tests/browser/axe"


@dataclass(frozen=True)
class File:
    """A file of a library: its path in the package, its name here, and the SHA-256 of what is written."""

    source: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Library:
    """A package of the npm registry.

    Attributes:
        integrity: digest of the package's archive, as the registry and lock files of npm state it.
        licence: SPDX expression.
        folder: where its files are kept, from the root of the repository.
    """

    name: str
    version: str
    integrity: str
    licence: str
    folder: str
    files: tuple[File, ...]


LIBRARIES: Final = (
    Library(
        name="preact",
        version="11.2.0",
        integrity="sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        licence="MIT",
        folder=_CONSOLE,
        files=(
            File("dist/preact.mjs", "preact.js", "225d7a773766e6fb2cfcc45274fe41d2059f5782f3f2c4569aa5132a2d3a2902"),
            File(
                "hooks/dist/hooks.mjs",
                "preact-hooks.js",
                "5c65ab263688d0805862fd0807c779af02c2799c44fda0873dfcb870d0da70a0",
            ),
        ),
    ),
    Library(
        name="@preact/signals-core",
        version="1.14.5",
        integrity="sha512-vcRv7Ityz5JVmeiVqIluLFzT/PDS/AlhHUpw3/aUWqcVUs6bDGIPXE/6RSC4evBNWYvnniozg5Syfj33al3gkg==",
        licence="MIT",
        folder=_CONSOLE,
        files=(
            File(
                "dist/signals-core.mjs",
                "signals.js",
                "147cdbe5e0e6e9cb35a27f2d4f496f8ba0fbd6beedf9e683e0297a976773b724",
            ),
        ),
    ),
    Library(
        name="htm",
        version="3.1.1",
        integrity="sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        licence="Apache-2.0",
        folder=_CONSOLE,
        files=(File("dist/htm.mjs", "htm.js", "ab33dd3f38059b9be4d5f5350128eefb2356639c4e0bbe9d9e8b3ba75847e9e4"),),
    ),
    Library(
        name="axe-core",
        version="4.14.1",
        integrity="sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        licence="MPL-2.0",
        folder=_AXE,
        files=(File("axe.min.js", "axe.min.js", "188dc50c7c68617d089b37fcb2d6376ce35488958baa977cd7c35cc1391e592e"),),
    ),
)
#: The libraries that the package `api` contains.
CONSOLE_LIBRARIES: Final = tuple(library for library in LIBRARIES if library.folder == _CONSOLE)

# The specifiers of modules by the files that they name here: a browser knows no packages.
_SPECIFIERS: Final = {"preact": "./preact.js"}
_IMPORT: Final = re.compile(r"""(?<=\bfrom)(["'])([^"'./][^"']*)\1""")
_SOURCE_MAP: Final = re.compile(r"//# sourceMappingURL=.*\n?")


def main() -> None:
    """Fetch every library, check it, and write its files and the licences; exit if a digest differs."""
    licences: dict[str, list[str]] = {}
    for library in LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            members = read_archive(_fetch(library, Path(folder)), library.integrity)
        for name, text in vendored_files(library, members).items():
            (ROOT / library.folder / name).write_text(text, encoding="utf-8")
        licences.setdefault(library.folder, []).append(licence_entry(library, members))
        sys.stdout.write(f"{library.name} {library.version}: {', '.join(file.name for file in library.files)}\n")
    for folder, entries in licences.items():
        (ROOT / folder / "LICENSES.txt").write_text("\n".join(entries), encoding="utf-8")


def _fetch(library: Library, folder: Path) -> bytes:
    command = ["npm", "pack", "--silent", f"{library.name}@{library.version}", f"--pack-destination={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    [archive] = folder.iterdir()
    return archive.read_bytes()


def read_archive(data: bytes, integrity: str) -> dict[str, str]:
    """Return the texts of a package's archive by their paths in the package; others are left out.

    Raises:
        SystemExit: the archive has another digest.
    """
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != integrity:
        raise SystemExit(f"the archive has the integrity {found}, and {integrity} is expected")
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            members = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
            return {
                name.partition("/")[2]: member.read().decode("utf-8", "replace")
                for name, member in members.items()
                if member
            }


def vendored_files(library: Library, members: Mapping[str, str]) -> dict[str, str]:
    """Return the files of a library as they are written, by their names.

    Raises:
        SystemExit: a file has another digest, or imports a package that is not here.
    """
    written = {}
    for file in library.files:
        text = _SOURCE_MAP.sub("", members[file.source]).rstrip() + "\n"
        if file.source.endswith(".mjs"):
            text = _IMPORT.sub(_local_import, text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest != file.sha256:
            raise SystemExit(f"{file.name} of {library.name} has the sha256 {digest}, and {file.sha256} is expected")
        written[file.name] = text
    return written


def _local_import(match: re.Match[str]) -> str:
    if match[2] not in _SPECIFIERS:
        raise SystemExit(f"a module imports {match[2]!r}, which is not here; add it to LIBRARIES")
    return f'"{_SPECIFIERS[match[2]]}"'


def licence_entry(library: Library, members: Mapping[str, str]) -> str:
    """Return the entry of a library in LICENSES.txt."""
    names = ", ".join(file.name for file in library.files)
    return f"{library.name} {library.version} ({names})\n\n{members['LICENSE'].rstrip()}\n"


if __name__ == "__main__":
    main()
