"""The output of a slot's process."""

import os
import signal

from worker.fleet import slot_process
from worker.fleet.slot_process import SlotProcess


def test_a_slot_ends_although_a_process_that_left_its_group_holds_its_output(monkeypatch, tmp_path, wait_until):
    monkeypatch.setattr(slot_process, "_JOIN_S", 0.1)
    escaped = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {escaped}.new; mv {escaped}.new {escaped}; exec sleep 600' & wait"
    slot = SlotProcess("a", ["/bin/sh", "-c", script], log_format="console")
    slot.start()
    wait_until(escaped.exists, what="the process in a session of its own")

    slot.stop(grace_s=0)

    pid = int(escaped.read_text())
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


def test_lines_are_labelled_and_ended(capfd):
    script = "printf 'no end of line'"
    for log_format in ("console", "json"):
        slot = SlotProcess("a", ["/bin/sh", "-c", script], log_format=log_format)
        slot.start()
        slot._copier.join(10)
        slot.stop(grace_s=0)

    labelled, record = capfd.readouterr().err.splitlines()
    assert labelled == "[a] no end of line"
    assert '"event": "no end of line"' in record
