"""The distribution holds every package and data file, and each extra installs what its part imports."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]

# Hides every installed distribution but the named ones, then runs code.
RUN_WITH_ONLY = """
import importlib.machinery, sys
from importlib import metadata

visible, code = sys.argv[1].split(","), sys.argv[2]
hidden = {
    module
    for module, names in metadata.packages_distributions().items()
    if not any(name.lower().replace("_", "-") in visible for name in names)
}
find_spec = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in hidden else find_spec(name, *rest)
)
exec(code)
"""


def folders():
    """Every folder of a package, by its name."""
    tops = {name for name in PACKAGES if "." not in name}
    found = {init.parent for top in tops for init in (ROOT / top).rglob("__init__.py")}
    return {".".join(folder.relative_to(ROOT).parts): folder for folder in found}


def requirements(extra):
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])]
    return [Requirement(line) for line in lines]


def installed_by(extra):
    """Names of the distributions that the project and one extra install, with all that those require."""
    names, queue = {"flux2-queue"}, requirements(extra)
    seen = set()
    while queue:
        wanted = queue.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras or [""])
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        names.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
        nested = [Requirement(line) for line in lines]
        queue += [r for r in nested if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return names


def run_with(extra, code):
    """Run code in a fresh interpreter that sees only what the project and one extra install."""
    command = [sys.executable, "-W", "ignore", "-c", RUN_WITH_ONLY, ",".join(installed_by(extra)), code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def import_with(extra, modules):
    return run_with(extra, f"import {', '.join(modules)}")


def test_every_package_is_listed():
    assert set(PACKAGES) == set(folders())


def test_every_file_that_is_not_python_is_package_data():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    listed = {file for package, globs in data.items() for glob in globs for file in folders()[package].glob(glob)}
    tops = [ROOT / name for name in PACKAGES if "." not in name]

    files = {file for top in tops for file in top.rglob("*") if file.is_file()}

    others = {file for file in files if file.suffix not in (".py", ".pyc")}
    assert len(others) > 20  # the scripts of the ledger and the demonstration model
    assert others <= listed


@pytest.mark.parametrize(
    ("extra", "modules"),
    [
        ("", ["shared.cli", "shared.local.stack", "api.commands", "flux2_client.commands", "worker.commands"]),
        ("client", ["flux2_client.client", "flux2_client.demo", "flux2_client.replay"]),
        ("mcp", ["flux2_client.mcp_server"]),
        ("api", ["api.app", "uvicorn", "flux2_client.replay"]),
        ("worker", ["worker.consumer.consumer", "worker.consumer.host_locks", "worker.consumer.image_file"]),
        ("provenance", ["shared.provenance.signer", "shared.provenance.local_certificate", "c2pa", "PIL.Image"]),
    ],
)
def test_an_extra_installs_what_its_part_imports(extra, modules):
    done = import_with(extra, modules)

    assert done.returncode == 0, done.stderr


def test_a_module_that_needs_an_extra_cannot_be_imported_without_it():
    done = import_with("", ["flux2_client.client"])

    assert "No module named 'httpx2'" in done.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["api"], "api"),
        (["worker"], "worker"),
        (["render", "pyproject.toml"], "worker"),
        (["verify", "tests/goldens"], "worker"),
        (["replay", "pyproject.toml"], "client"),
        (["demo", "--output", "{folder}"], "client"),
        (["mcp"], "mcp"),
        (["up", "--data", "{folder}"], "api"),
        (["provenance", "certificate", "{folder}"], "provenance"),
        (["provenance", "show", "pyproject.toml"], "provenance"),
    ],
)
def test_a_command_whose_extra_is_missing_says_in_one_line_which_to_install(command, extra, tmp_path):
    arguments = [part.format(folder=tmp_path) for part in command]
    code = f"import sys; sys.argv[1:] = {arguments}; from shared.cli import main; main()"

    done = run_with("", code)

    assert done.returncode == 1
    assert f"install flux2-queue[{extra}]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
