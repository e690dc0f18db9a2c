"""The supervisor with processes of the shell in place of workers."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.consumer import slot_health
from worker.consumer.slot_health import HealthFile, read_health
from worker.fleet import supervisor

# Runs slots `a`, `b` ... with the scripts that it is given, as `flux2 worker --gpus` does.
_PROGRAM = """
import sys
from pathlib import Path
from shared import logs
from shared.local import backoff
from shared.settings import LogSettings
from worker.fleet import supervisor
from worker.fleet.slot_process import SlotProcess

log_format, health_dir, *scripts = sys.argv[1:]
logs.configure(LogSettings(format=log_format))
backoff.FIRST_WAIT_S = 0.05
supervisor._HUNG_WATCHED_S = 0.3
slots = [SlotProcess(label, ["/bin/sh", "-c", script], log_format=log_format) for label, script in zip("abc", scripts)]
sys.exit(supervisor.Supervisor(slots, drain_s=5, health_dir=Path(health_dir)).run())
"""
_WAITS = 'trap "exit 0" TERM; echo up; while :; do sleep 0.05; done'


@pytest.fixture
def supervise(tmp_path, wait_until):
    """Start a supervisor of these scripts; `.wait_for(text)` waits for its output, which `.lines` holds."""
    running = []

    class Run:
        def __init__(self, *scripts, log_format="console", is_read=True):
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, log_format, str(tmp_path / "health"), *scripts],
                stderr=subprocess.PIPE,
                text=True,
            )
            self.lines = []
            self._reader = threading.Thread(target=self._read if is_read else lambda: None)
            self._reader.start()

        def _read(self):
            for line in self.process.stderr:
                self.lines.append(line.rstrip("\n"))

        def wait_for(self, text, count=1):
            wait_until(lambda: sum(text in line for line in self.lines) >= count, 60, what=f"the line {text!r}")

        def close_log(self):
            self.process.stderr.close()

        def wait(self):
            status = self.process.wait(timeout=60)
            self._reader.join()
            return status

    def start(*scripts, **options):
        running.append(Run(*scripts, **options))
        return running[-1]

    yield start

    for run in running:
        run.process.kill()
        run.wait()
        run.process.stderr.close()


def test_each_line_has_its_slots_label_and_a_signal_drains_every_slot(supervise):
    run = supervise(_WAITS, _WAITS)
    run.wait_for("] up", count=2)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 0
    assert {"[a] up", "[b] up"} <= set(run.lines)


def test_a_slot_that_dies_starts_again_while_the_others_run(supervise, tmp_path):
    once = f"[ -e {tmp_path}/died ] || {{ touch {tmp_path}/died; exit 70; }}; {_WAITS.replace('up', 'back')}"
    run = supervise(once, _WAITS)
    run.wait_for("[a] back")
    run.wait_for("[b] up")
    assert sum("[b] up" in line for line in run.lines) == 1
    assert any("slot's process ended" in line and "status=70" in line for line in run.lines)
    assert run.process.poll() is None


def test_a_slot_that_hangs_is_killed_and_starts_again_while_the_others_run(supervise, tmp_path):
    once = f"echo pid $$; [ -e {tmp_path}/hung ] || {{ touch {tmp_path}/hung; exec sleep 600; }}; {_WAITS}"
    run = supervise(once, _WAITS)
    run.wait_for("[a] pid")
    run.wait_for("[b] up")
    HealthFile(tmp_path / "health", "a").write(state="ready", is_confirmed=True)
    [health] = read_health(tmp_path / "health")
    [file] = (tmp_path / "health").iterdir()
    hung = replace(
        health,
        pid=pid_of(run, "a"),
        process_start=slot_health._process_start(pid_of(run, "a")),
        sent_s=health.sent_s - slot_health.HUNG_AFTER_S,
    )

    file.write_text(json.dumps(asdict(hung)))

    run.wait_for("[a] up")
    assert any("slot hangs" in line and "slot=a" in line for line in run.lines)
    assert any("slot's process ended" in line and "status=-9" in line for line in run.lines)
    assert sum("[b] up" in line for line in run.lines) == 1


def test_a_slot_that_was_frozen_together_with_its_supervisor_may_send_a_heartbeat_first(tmp_path):
    killed = []
    process = SimpleNamespace(pid=os.getpid(), label="a", kill=lambda: killed.append("a"))
    watched = supervisor.Supervisor([process], drain_s=5, health_dir=tmp_path)
    file = HealthFile(tmp_path, "a")
    file.write(state="busy", is_confirmed=True)
    [health] = read_health(tmp_path)

    watched._kill_hung(now_s=health.sent_s + 600)
    watched._kill_hung(now_s=health.sent_s + 614)
    assert killed == []

    # After 15 s without one it is killed, and after 15 s more once again, if it has not ended.
    for later_s in (616, 617, 630, 632):
        watched._kill_hung(now_s=health.sent_s + later_s)
    assert killed == ["a", "a"]

    # A heartbeat ends the count.
    watched._kill_hung(now_s=health.sent_s + 3)
    watched._kill_hung(now_s=health.sent_s + 1200)
    assert killed == ["a", "a"]


def test_a_slot_that_is_drained_alone_stays_down_and_the_last_one_ends_the_supervisor(supervise):
    run = supervise("echo done; exit 0", "echo done; exit 0")
    assert run.wait() == 0
    assert sum("] done" in line for line in run.lines) == 2


def test_a_supervisor_of_which_no_slot_can_start_ends_with_an_error(supervise):
    run = supervise("echo no model here; exit 1", "echo no model here; exit 1")
    assert run.wait() == 1
    assert "[a] no model here" in run.lines
    assert "no slot could start" in run.lines[-1]


def test_a_slot_that_fails_late_does_not_keep_a_supervisor_up_of_which_no_slot_can_start(supervise, tmp_path):
    # The second slot fails when the first one has been tried again.
    quick = f"[ ! -e {tmp_path}/tried ] || touch {tmp_path}/again; touch {tmp_path}/tried; exit 1"
    late = f"until [ -e {tmp_path}/again ]; do sleep 0.05; done; exit 1"
    run = supervise(quick, late)
    assert run.wait() == 1
    assert "no slot could start" in run.lines[-1]


def test_a_slot_that_is_drained_while_it_starts_stays_down(supervise):
    run = supervise("echo pid $$; exec sleep 60")
    run.wait_for("[a] pid")
    os.kill(pid_of(run, "a"), signal.SIGTERM)
    assert run.wait() == 0
    assert not any("restarted" in line for line in run.lines)


def test_slots_run_on_when_nobody_reads_the_log_any_more(supervise, tmp_path, wait_until):
    # More than a pipe holds, then a file that shows that the slot did not block.
    writes = f"echo up; read -r _ < {tmp_path}/go; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo {'x' * 50}; done"
    os.mkfifo(tmp_path / "go")
    run = supervise(f"{writes}; touch {tmp_path}/written; {_WAITS}", is_read=False)
    run.close_log()
    (tmp_path / "go").write_text("\n")
    wait_until(lambda: (tmp_path / "written").exists(), 60, what="the end of the slot's output")


def test_a_slot_that_cannot_start_is_tried_again_if_another_one_runs(supervise):
    run = supervise("echo in use; exit 1", _WAITS)
    run.wait_for("[a] in use", count=3)
    assert run.process.poll() is None


def test_slots_end_with_a_supervisor_that_is_killed(supervise, wait_until):
    run = supervise(f"echo pid $$; {_WAITS}")
    run.wait_for("[a] pid")
    pid = pid_of(run, "a")
    run.process.kill()
    wait_until(lambda: has_ended(pid), what="the slot's end")


def test_a_second_signal_kills_a_slot_that_does_not_drain(supervise):
    run = supervise('trap "echo busy" TERM; echo up; while :; do sleep 0.05; done')
    run.wait_for("[a] up")
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("[a] busy")
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 0
    assert any("killed" in line for line in run.lines)


def test_a_log_of_json_stays_one(supervise):
    run = supervise("""echo '{"event": "mine"}'; echo 'Segmentation "fault"'; exit 0""", log_format="json")
    run.wait()
    records = [json.loads(line) for line in run.lines]
    assert {"event": "mine"} in records
    assert any(record["event"] == 'Segmentation "fault"' and record["slot"] == "a" for record in records)


def pid_of(run, label):
    return int(next(line for line in run.lines if f"[{label}] pid" in line).split()[-1])


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
