"""Look for known vulnerabilities in everything that is locked, without a network.

    python -m tools.supply_chain.audit                   compare the locked versions with `deploy/advisories.json`
    python -m tools.supply_chain.audit --update CHECKOUT  write that file from a checkout of PyPA's advisory database

The file states the date of its advisories. `make audit` also runs pip-audit, which asks PyPI for the present ones.

Source:
    https://github.com/pypa/advisory-database, in the format of https://ossf.github.io/osv-schema/
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tools.supply_chain.lock import PACKAGES, ROOT

ADVISORIES = ROOT / "deploy" / "advisories.json"
CONSTRAINTS = ROOT / "constraints.txt"
#: After so many days, people must look further.
STALE_DAYS = 30
_LONGEST_SUMMARY = 160


def main() -> int:
    """Print what is known; return 1 if a locked version is vulnerable."""
    options = argparse.ArgumentParser()
    options.add_argument("--update", metavar="CHECKOUT", type=Path, help="checkout of PyPA's advisory database")
    checkout = options.parse_args().update
    if checkout:
        ADVISORIES.write_text(json.dumps(collect(checkout, locked_versions()), indent=1, sort_keys=True) + "\n")
    record = json.loads(ADVISORIES.read_text())
    lines, is_clean = report(record, locked_versions(), today=datetime.now(UTC).date())
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if is_clean else 1


def locked_versions() -> dict[str, set[str]]:
    """Return the versions of every locked package: those of the images, and those of the tests."""
    locked: dict[str, set[str]] = {}
    for line in CONSTRAINTS.read_text().split():
        name, _, version = line.partition("==")
        locked.setdefault(canonicalize_name(name), set()).add(version)
    for name, package in json.loads(PACKAGES.read_text()).items():
        locked.setdefault(name, set()).add(package["version"])
    return locked


def report(record: dict[str, Any], locked: dict[str, set[str]], *, today: date) -> tuple[list[str], bool]:
    """Return the lines to print, and whether no locked version is known to be vulnerable."""
    published = date.fromisoformat(record["date"])
    age = (today - published).days
    lines = [
        f"{len(locked)} locked packages, {len(record['advisories'])} advisories until {published} ({age} days ago)"
    ]
    if age > STALE_DAYS:
        lines.append("later advisories are not in it: run `make audit` where PyPI can be reached, or update the file")
    unseen = sorted(set(locked) - set(record["packages"]))
    if unseen:
        lines.append(f"not looked up: {', '.join(unseen)}; update the file")
    found = list(_find(record, locked))
    lines += found or ["no locked version is known to be vulnerable"]
    return lines, not found


def collect(checkout: Path, locked: dict[str, set[str]]) -> dict[str, Any]:
    """Return the advisories of a checkout about the locked packages, with the date of its last commit."""
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%cs"]
    committed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    advisories = [
        {"id": one["id"], "package": name, "ranges": _ranges(one, name), "summary": _summary(one)}
        for name in sorted(locked)
        for file in sorted((checkout / "vulns" / name).glob("*.yaml"))
        if not (one := yaml.safe_load(file.read_text())).get("withdrawn")
    ]
    return {"date": committed, "packages": sorted(locked), "advisories": advisories}


def is_affected(version: str, ranges: list[dict[str, str]]) -> bool:
    """Return whether a version is in one of the ranges; a range without an end never ends."""
    found = Version(version)
    return any(
        _at_least(found, one.get("introduced", "0"))
        and not ("fixed" in one and _at_least(found, one["fixed"]))
        and not ("last_affected" in one and found > Version(one["last_affected"]))
        for one in ranges
    )


def _find(record: dict[str, Any], locked: dict[str, set[str]]) -> Iterator[str]:
    for advisory in record["advisories"]:
        for version in sorted(locked.get(advisory["package"], ())):
            if is_affected(version, advisory["ranges"]):
                fixed = ", ".join(one["fixed"] for one in advisory["ranges"] if "fixed" in one) or "no version yet"
                yield f"{advisory['package']} {version}: {advisory['id']}, fixed in {fixed}: {advisory['summary']}"


def _ranges(advisory: dict[str, Any], name: str) -> list[dict[str, str]]:
    """Return each range as its `introduced` with the `fixed` or `last_affected` that follows.

    An advisory may have ranges of commits alone; then each version that it lists is a range.
    """
    ranges: list[dict[str, str]] = []
    for affected in advisory["affected"]:
        if canonicalize_name(affected["package"]["name"]) != name:
            continue
        kinds = [kind for kind in affected.get("ranges", ()) if kind["type"] == "ECOSYSTEM"]
        if not kinds:
            ranges += [{"introduced": str(one), "last_affected": str(one)} for one in affected.get("versions", ())]
        for kind in kinds:
            for event in kind["events"]:
                if "introduced" in event:
                    ranges.append({"introduced": str(event["introduced"])})
                elif ranges:
                    ranges[-1].update({key: str(value) for key, value in event.items()})
    return ranges


def _summary(advisory: dict[str, Any]) -> str:
    text = " ".join(str(advisory.get("summary") or advisory.get("details") or "").split())
    aliases = ", ".join(one for one in advisory.get("aliases", ()) if one.startswith("CVE"))
    return f"{aliases} {text}"[:_LONGEST_SUMMARY].strip()


def _at_least(version: Version, bound: str) -> bool:
    try:
        return version >= Version(bound)
    except InvalidVersion:
        # A commit or another text: a person must look.
        return True


if __name__ == "__main__":
    sys.exit(main())
