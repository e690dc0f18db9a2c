"""What the container images contain is locked by hash, has a known and allowed licence, and is looked up."""

import json
import re
import subprocess
from datetime import date

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.supply_chain import audit, licences, lock, sbom
from tools.vendor_console import CONSOLE_LIBRARIES

PACKAGES = json.loads(lock.PACKAGES.read_text())
CONSTRAINTS = dict(line.split("==") for line in audit.CONSTRAINTS.read_text().split())
TODAY = date(2026, 11, 29)


def inside(image):
    return {name for name, package in PACKAGES.items() if image in package["images"]}


@pytest.mark.parametrize("image", lock.MACHINES)
def test_a_lock_names_every_package_of_the_image_with_the_hash_of_each_wheel(image):
    text = lock.lock_file(image).read_text()

    entries = re.findall(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    locked = {name: (version, re.findall(r"sha256:(\S+)", hashes)) for name, version, hashes in entries}
    assert locked == {name: (PACKAGES[name]["version"], PACKAGES[name]["hashes"]) for name in inside(image)}
    # No line is left over: pip would read it.
    assert len(re.sub(r" \\\n", "", text).splitlines()) == len(entries) + 1


@pytest.mark.parametrize("image", lock.MACHINES)
def test_a_lock_has_what_the_project_declares_and_all_that_this_needs(image):
    declared = {canonicalize_name(Requirement(line).name) for line in lock.wanted(image)}
    needed = {name for package in inside(image) for name in PACKAGES[package]["requires"]}

    # uvloop is not for Windows; the images run Linux.
    assert declared <= inside(image)
    assert needed <= inside(image)
    # Nothing is in an image that nothing asks for.
    assert inside(image) <= declared | needed


@pytest.mark.parametrize("image", lock.MACHINES)
def test_every_locked_version_is_one_that_the_project_allows(image):
    for line in lock.wanted(image):
        wanted = Requirement(line)
        assert wanted.specifier.contains(PACKAGES[canonicalize_name(wanted.name)]["version"]), line


def test_the_images_have_the_versions_that_the_tests_run_with():
    tested = {canonicalize_name(name): version for name, version in CONSTRAINTS.items()}

    others = {name: package["version"] for name, package in PACKAGES.items() if name in tested}
    assert others == {name: tested[name] for name in others}
    # Only CUDA's libraries and the tool that builds the project are in an image without being tested.
    untested = set(PACKAGES) - set(tested)
    assert {name for name in untested if not name.startswith(("nvidia-", "cuda-"))} <= {"setuptools", "triton"}


def test_every_licence_is_known_and_allowed():
    stated = {name: package["licence"] for name, package in PACKAGES.items()}
    stated |= {library.name: library.licence for library in CONSOLE_LIBRARIES}

    refused = {name: licences.refused_licences(name, licence) for name, licence in stated.items()}

    assert {name: parts for name, parts in refused.items() if parts} == {}


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("a", "GPL-3.0-only"),
        ("a", "MIT AND AGPL-3.0-or-later"),
        ("a", "(MIT OR GPL-2.0-only) AND Zlib"),
        ("a", licences.UNKNOWN),
        ("a", licences.NVIDIA),
    ],
)
def test_another_licence_is_refused(name, expression):
    assert licences.refused_licences(name, expression)


@pytest.mark.parametrize(
    ("metadata", "expression"),
    [
        ({"license_expression": "MIT-CMU"}, "MIT-CMU"),
        ({"license": "BSD-3-Clause"}, "BSD-3-Clause"),
        ({"license": "Apache 2.0 License"}, "Apache-2.0"),
        ({"classifier": ["License :: OSI Approved :: MIT License", "Topic :: A"]}, "MIT"),
        (
            {
                "license": "Dual License",
                "classifier": [
                    "License :: OSI Approved :: BSD License",
                    "License :: OSI Approved :: Apache Software License",
                ],
            },
            "LicenseRef-BSD OR Apache-2.0",
        ),
        ({"license": "see the file"}, licences.UNKNOWN),
        ({}, licences.UNKNOWN),
    ],
)
def test_the_licence_is_what_the_metadata_states(metadata, expression):
    assert licences.state_licence(metadata) == expression


@pytest.mark.parametrize("image", lock.MACHINES)
def test_the_bill_of_materials_lists_each_package_once_and_knows_every_dependency(image):
    bill = sbom.bill_of_materials(image, PACKAGES)

    refs = [component["bom-ref"] for component in bill["components"]]
    assert len(refs) == len(set(refs)) == len(inside(image)) + len(CONSOLE_LIBRARIES)
    assert bill == sbom.bill_of_materials(image, PACKAGES)
    known = {*refs, bill["metadata"]["component"]["bom-ref"]}
    assert {dependency["ref"] for dependency in bill["dependencies"]} == known
    assert {ref for dependency in bill["dependencies"] for ref in dependency["dependsOn"]} <= known
    assert all(
        component["licenses"] and component["purl"].startswith(("pkg:pypi/", "pkg:npm/"))
        for component in bill["components"]
    )


def test_the_command_writes_the_bills_and_the_licences(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sbom", str(tmp_path / "out")])

    sbom.main()

    assert {file.name for file in (tmp_path / "out").iterdir()} == {"api.cdx.json", "worker.cdx.json", "licences.txt"}
    assert len((tmp_path / "out" / "licences.txt").read_text().splitlines()) == len(PACKAGES) + len(CONSOLE_LIBRARIES)
    assert "api.cdx.json" in capsys.readouterr().out


def test_no_locked_version_is_known_to_be_vulnerable_and_every_one_was_looked_up():
    record = json.loads(audit.ADVISORIES.read_text())

    lines, is_clean = audit.report(record, audit.locked_versions(), today=TODAY)

    assert is_clean, lines
    assert set(PACKAGES) <= set(record["packages"])
    assert record["date"] in lines[0]


ADVISORY = """
id: PYSEC-2023-83
details: Directory traversal
affected:
- package: {name: Starlette, ecosystem: PyPI}
  ranges:
  - {type: ECOSYSTEM, events: [{introduced: 0.13.5}, {fixed: 0.27.0}, {introduced: "1.0"}]}
  - {type: GIT, events: [{introduced: "0"}]}
aliases: [GHSA-v5gw-mw7f-84px, CVE-2023-29159]
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout of an advisory database with one advisory, and one that was withdrawn."""
    folder = tmp_path_factory.mktemp("database")
    (folder / "vulns" / "starlette").mkdir(parents=True)
    (folder / "vulns" / "starlette" / "PYSEC-2023-83.yaml").write_text(ADVISORY)
    (folder / "vulns" / "starlette" / "PYSEC-2023-84.yaml").write_text(ADVISORY + "withdrawn: 2024-01-01T00:00:00Z\n")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a", "--date", "2024-10-10T00:00:00Z"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.mark.parametrize(
    ("version", "is_vulnerable"),
    [
        ("0.13.4", False),
        ("0.13.5", True),
        ("0.26.1", True),
        ("0.27.0", False),
        ("0.99", False),
        ("1.0", True),
        ("2", True),
    ],
)
def test_a_version_inside_a_range_is_reported_with_what_fixes_it(checkout, version, is_vulnerable):
    locked = {"starlette": {version}}

    record = audit.collect(checkout, locked)
    lines, is_clean = audit.report(record, locked, today=TODAY)

    assert is_clean is not is_vulnerable
    found = f"starlette {version}: PYSEC-2023-83, fixed in 0.27.0: CVE-2023-29159 Directory traversal"
    assert (found in lines) is is_vulnerable


def test_an_advisory_without_ranges_of_versions_is_about_those_that_it_lists():
    commits = {"type": "GIT", "events": [{"introduced": "0"}]}
    advisory = {"affected": [{"package": {"name": "torch"}, "ranges": [commits], "versions": ["2.1.0", "2.1.1"]}]}

    ranges = audit._ranges(advisory, "torch")

    assert [audit.is_affected(version, ranges) for version in ("2.0", "2.1.0", "2.1.1", "2.2")] == [0, 1, 1, 0]


def test_old_advisories_and_packages_that_nobody_looked_up_are_named():
    record = {"date": "2024-10-10", "packages": ["a"], "advisories": []}

    lines, is_clean = audit.report(record, {"a": {"1"}, "b": {"2"}}, today=TODAY)

    assert is_clean
    assert lines[0] == "2 locked packages, 0 advisories until 2024-10-10 (780 days ago)"
    assert "run `make audit` where PyPI can be reached" in lines[1]
    assert lines[2] == "not looked up: b; update the file"
