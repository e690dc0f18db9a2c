"""The files by which probes see that slots work."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from worker.consumer import slot_health
from worker.consumer.slot_health import HealthFile, find_problem, read_health

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written(tmp_path):
    """Write the file of a slot of this process, with other values where given, as of the moment 1000."""

    def write(slot="gpu-0", **changes):
        HealthFile(tmp_path, slot).write(state="ready", is_confirmed=True)
        [health] = [health for health in read_health(tmp_path) if health.slot == slot]
        changed = replace(health, **{"sent_s": 1000.0, "confirmed_s": 1000.0, **changes})
        [file] = [file for file in tmp_path.glob("*.json") if json.loads(file.read_text())["slot"] == slot]
        file.write_text(json.dumps(asdict(changed)))
        return tmp_path

    return write


def probe(folder, name, *, now_s=1001.0, slots=1):
    return find_problem(folder, name, slots=slots, now_s=now_s)


def test_a_heartbeat_that_redis_confirmed_makes_a_slot_ready(tmp_path):
    HealthFile(tmp_path, "host/GPU-1").write(state="busy", is_confirmed=True)

    assert probe(tmp_path, "ready", now_s=time.monotonic()) is None
    assert probe(tmp_path, "live", now_s=time.monotonic()) is None


def test_a_heartbeat_that_redis_did_not_confirm_keeps_a_slot_alive_and_makes_none_ready(tmp_path):
    HealthFile(tmp_path, "gpu-0").write(state="ready", is_confirmed=False)

    assert probe(tmp_path, "ready", now_s=time.monotonic()) == "0 of 1 slots take work (gpu-0 was ready)"
    assert probe(tmp_path, "live", now_s=time.monotonic()) is None


def test_an_outage_of_redis_makes_a_slot_unready_when_the_ledger_forgets_it_and_never_dead(written):
    folder = written(confirmed_s=1000.0, sent_s=1015.1)

    assert probe(folder, "ready", now_s=1015.0) is None
    assert probe(folder, "ready", now_s=1015.2) == "0 of 1 slots take work (gpu-0 was ready)"
    assert probe(folder, "live", now_s=1015.2) is None


def test_the_last_confirmation_outlives_heartbeats_that_failed(tmp_path):
    file = HealthFile(tmp_path, "gpu-0")
    file.write(state="ready", is_confirmed=True)
    [confirmed] = read_health(tmp_path)
    file.write(state="ready", is_confirmed=False)

    [health] = read_health(tmp_path)
    assert health.confirmed_s == confirmed.confirmed_s < health.sent_s


def test_a_process_that_runs_without_heartbeats_hangs_after_a_minute(written):
    folder = written()

    assert probe(folder, "live", now_s=1060.0) is None
    assert probe(folder, "live", now_s=1060.1) == "no heartbeat for 60 s: gpu-0"


def test_a_process_that_ended_does_not_hang_and_is_not_ready(written):
    # The number belongs to another process now: this one did not start at that tick.
    folder = written(process_start="1")

    assert probe(folder, "live", now_s=9999.0) is None
    assert probe(folder, "ready") == "0 of 1 slots take work (gpu-0 was ready)"


def test_a_killed_process_that_nobody_has_waited_for_has_ended(written, wait_until):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = written(pid=process.pid, process_start=slot_health._process_start(process.pid))
    assert probe(folder, "ready") is None

    process.kill()

    # A zombie, until `wait`.
    wait_until(lambda: probe(folder, "ready") is not None, what="the end of the process")
    assert os.path.exists(f"/proc/{process.pid}")
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("state", ["faulty", "draining"])
def test_a_slot_that_takes_no_work_is_alive_and_not_ready(written, state):
    folder = written(state=state)

    assert probe(folder, "ready") == f"0 of 1 slots take work (gpu-0 was {state})"
    assert probe(folder, "live") is None


def test_a_container_of_several_slots_is_ready_when_all_are_and_one_that_hangs_is_named(written):
    folder = written("gpu-0")
    assert probe(folder, "ready", slots=2) == "1 of 2 slots take work (gpu-0 was ready)"

    written("gpu-1", sent_s=900.0)

    assert probe(folder, "ready", slots=2) is None
    assert probe(folder, "live") == "no heartbeat for 60 s: gpu-1"


def test_a_heartbeat_that_comes_between_the_probes_looks_at_the_clock_and_at_the_file_counts(written):
    folder = written(sent_s=1001.001, confirmed_s=1001.001)

    assert probe(folder, "live", now_s=1001.0) is None
    assert probe(folder, "ready", now_s=1001.0) is None


def test_a_moment_of_before_the_hosts_last_start_counts_as_old(written):
    folder = written()

    assert probe(folder, "ready", now_s=10.0) is not None


def test_files_that_cannot_be_read_are_left_out(tmp_path):
    (tmp_path / "other.json").write_text('{"slot": "of another version"}')
    (tmp_path / "broken.json").write_text("{")

    assert read_health(tmp_path) == []
    assert probe(tmp_path, "ready") == "0 of 1 slots take work (none has sent a heartbeat)"


def test_a_slot_whose_file_cannot_be_written_is_not_ready_and_does_not_hang(tmp_path):
    file = HealthFile(tmp_path, "gpu-0")
    file.write(state="ready", is_confirmed=True)
    [written_file] = tmp_path.iterdir()
    # As a full disk does, it stops the next file before it replaces this one.
    written_file.with_suffix(".part").mkdir()

    with pytest.raises(OSError, match="directory"):
        file.write(state="ready", is_confirmed=True)

    later_s = time.monotonic() + 100
    assert probe(tmp_path, "live", now_s=later_s) is None
    assert probe(tmp_path, "ready") == "0 of 1 slots take work (none has sent a heartbeat)"


def test_a_slot_that_stops_removes_its_file_and_a_second_removal_is_harmless(tmp_path):
    file = HealthFile(tmp_path / "new", "gpu-0")
    file.write(state="ready", is_confirmed=True)

    file.remove()
    file.remove()

    assert list((tmp_path / "new").iterdir()) == []


def test_the_probe_is_a_command_that_imports_the_standard_library_alone(tmp_path):
    HealthFile(tmp_path, "gpu-0").write(state="ready", is_confirmed=True)
    # -S hides all installed packages.
    command = [sys.executable, "-S", "-m", "worker.consumer.slot_health"]

    passed = subprocess.run([*command, "ready", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    failed = subprocess.run(
        [*command, "ready", tmp_path, "--slots", "2"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (passed.returncode, passed.stderr) == (0, "")
    assert (failed.returncode, failed.stderr) == (1, "1 of 2 slots take work (gpu-0 was ready)\n")
