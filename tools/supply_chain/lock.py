"""Resolve what each container image installs, and write it down with the hashes that pip then insists on.

    python -m tools.supply_chain.lock

Writes `deploy/api.lock` and `deploy/worker.lock`, which the Dockerfiles install from, and `deploy/packages.json`, from
which `make sbom` and `make audit` work. Versions come from `constraints.txt`. pip chooses the wheels of the images'
Python and processors, whatever this host is; it downloads no wheel, only their metadata.
"""

from __future__ import annotations

import contextlib
import email
import json
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from importlib.metadata import PackageNotFoundError
from importlib.metadata import metadata as installed
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.supply_chain.licences import STATED, UNKNOWN, state_licence

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "deploy" / "packages.json"
#: Python of the images.
PYTHON = "3.12"
#: Processors for which each image can be built. A worker needs CUDA's wheels, which PyPI's torch has for this one.
MACHINES = {"api": ("x86_64", "aarch64"), "worker": ("x86_64",)}
#: Extras of each image: its side, traces, and signatures of images.
EXTRAS = {"api": ("api", "otel"), "worker": ("worker", "otel", "provenance")}
# Debian's C library in the images is newer.
_NEWEST_GLIBC_MINOR = 36
_TIMEOUT_S = 30.0


def main() -> None:
    """Write the locks and the inventory."""
    packages: dict[str, dict[str, Any]] = {}
    for image, machines in MACHINES.items():
        for machine in machines:
            entries = _resolve(image, machine)
            needed = _dependencies(image, entries, machine)
            for entry in entries:
                _add(packages, entry, image=image, needed=needed)
        _write_lock(image, packages)
    PACKAGES.write_text(json.dumps(packages, indent=1, sort_keys=True) + "\n")


def lock_file(image: str) -> Path:
    """Return the path of an image's lock."""
    return ROOT / "deploy" / f"{image}.lock"


def wanted(image: str) -> list[str]:
    """Return the requirements of an image: of the project, of its extras, and of the build of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared, extras = project["project"], project["project"]["optional-dependencies"]
    needed = [line for extra in EXTRAS[image] for line in extras[extra]]
    return [*declared["dependencies"], *needed, *project["build-system"]["requires"]]


def _resolve(image: str, machine: str) -> list[dict[str, Any]]:
    """Return pip's report of what it would install."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        requirements.write_text("\n".join(wanted(image)))
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST_GLIBC_MINOR, 4, -1)]
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        command += ["--report", str(report), "--target", folder, "--only-binary", ":all:", "--python-version", PYTHON]
        for tag in (*tags, f"manylinux2014_{machine}"):
            command += ["--platform", tag]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--requirement", str(requirements)]
        subprocess.run(command, check=True)
        return list(json.loads(report.read_text())["install"])


def _add(
    packages: dict[str, dict[str, Any]], entry: dict[str, Any], *, image: str, needed: dict[str, set[str]]
) -> None:
    metadata = entry["metadata"]
    name, version = canonicalize_name(metadata["name"]), metadata["version"]
    if "+" in version:
        raise SystemExit(f"{name} {version} is a build of another index than PyPI; run without PIP_EXTRA_INDEX_URL")
    known = packages.setdefault(
        name,
        {"version": version, "licence": _licence(entry), "hashes": [], "images": [], "requires": []},
    )
    known["hashes"] = sorted({*known["hashes"], entry["download_info"]["archive_info"]["hashes"]["sha256"]})
    known["images"] = sorted({*known["images"], image})
    known["requires"] = sorted({*known["requires"], *needed.get(name, ())})


def _licence(entry: dict[str, Any]) -> str:
    """Return a package's licence from pip's report, or from where pip before 25 does not look."""
    metadata = entry["metadata"]
    stated = STATED.get(canonicalize_name(metadata["name"])) or state_licence(metadata)
    if stated != UNKNOWN:
        return stated
    with contextlib.suppress(PackageNotFoundError):
        return installed(metadata["name"])["License-Expression"] or UNKNOWN
    # The index serves it next to the wheel (PEP 658), if at all.
    with contextlib.suppress(OSError), urllib.request.urlopen(_metadata_url(entry), timeout=_TIMEOUT_S) as answer:
        return email.message_from_bytes(answer.read())["License-Expression"] or UNKNOWN
    return UNKNOWN


def _metadata_url(entry: dict[str, Any]) -> str:
    return f"{entry['download_info']['url']}.metadata"


def _dependencies(image: str, entries: list[dict[str, Any]], machine: str) -> dict[str, set[str]]:
    """Return the names of what each package needs in an image; pip itself asks this host's Python."""
    environment = {
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    stated = {
        canonicalize_name(entry["metadata"]["name"]): [
            Requirement(line) for line in entry["metadata"].get("requires_dist", ())
        ]
        for entry in entries
    }
    found: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(line) for line in wanted(image)]
    while queue:
        one = queue.pop()
        name = canonicalize_name(one.name)
        for extra in {"", *one.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            active = [
                inner
                for inner in stated.get(name, ())
                if inner.marker is None or inner.marker.evaluate({**environment, "extra": extra})
            ]
            found.setdefault(name, set()).update(canonicalize_name(inner.name) for inner in active)
            queue += active
    return found


def _write_lock(image: str, packages: dict[str, dict[str, Any]]) -> None:
    lines = ["# Written by `make lock-images` for the container image; pip refuses every file with another hash."]
    for name, package in sorted(packages.items()):
        if image in package["images"]:
            hashes = [f"    --hash=sha256:{digest}" for digest in package["hashes"]]
            lines.append(" \\\n".join([f"{name}=={package['version']}", *hashes]))
    lock_file(image).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
