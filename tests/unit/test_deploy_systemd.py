"""The units of deploy/systemd."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.settings import WorkerSettings
from worker.commands import app
from worker.consumer import drain
from worker.fleet import supervisor

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def read_service(file):
    """Return the section `Service`: each name with all of its values."""
    text = file.read_text()
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(text)
    named = re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)
    return {name: [value for other, value in named if other == name] for name in parser["Service"]}


def test_there_is_a_unit_for_each_side():
    assert [file.name for file in UNITS] == ["flux2-api.service", "flux2-worker.service"]


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_a_unit_restarts_its_command_for_ever_and_gives_it_no_rights(file):
    service = read_service(file)

    assert service["Restart"] == ["always"]
    assert "StartLimitIntervalSec=0" in file.read_text()
    assert service["User"] == ["flux2"]
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["ProtectSystem"] == ["strict"]


def test_the_worker_drains_its_slots_itself_within_the_time_of_its_unit():
    [service] = [read_service(file) for file in UNITS if "worker" in file.name]

    # SIGTERM goes to the worker alone: systemd would also end what guards the slots.
    assert service["KillMode"] == ["mixed"]
    longest_s = WorkerSettings().drain_s + max(supervisor._GRACE_S, drain._CLOSE_S)
    assert int(service["TimeoutStopSec"][0]) >= longest_s + 5
    program, *command = shlex.split(service["ExecStart"][0])
    assert Path(program).name == "flux2"
    assert command == ["worker", "--gpus", "all"]
    assert "worker" in {registered.callback.__name__ for registered in app.registered_commands}


def test_the_worker_writes_only_into_folders_that_its_unit_makes():
    [service] = [read_service(file) for file in UNITS if "worker" in file.name]

    folders = dict(entry.split("=") for line in service["Environment"] for entry in line.split())
    made = (f"/run/{service['RuntimeDirectory'][0]}", f"/var/cache/{service['CacheDirectory'][0]}/")
    assert all(folder.startswith(made) for folder in folders.values())
    known = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert {name for name in folders if name.startswith("FLUX2_")} <= known
    # Those of the image: libraries write there.
    image = (ROOT / "deploy" / "worker.Dockerfile").read_text()
    [variables] = re.findall(r"^ENV (.+)$", image, re.MULTILINE)
    assert {entry.partition("=")[0] for entry in variables.split()} <= set(folders)


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_systemd_knows_every_line(file, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here")
    # Its program and its user are not on this host.
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", file.read_text(), flags=re.MULTILINE)
    (tmp_path / file.name).write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / file.name], capture_output=True, text=True, check=False
    )

    assert [line for line in done.stderr.splitlines() if file.name in line] == []
