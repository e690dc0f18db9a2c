"""The heartbeat reports the current state, and never announces a withdrawn slot again."""

import threading
from types import SimpleNamespace

import pytest

from shared.errors import LedgerUnavailable, ServerFailed
from shared.metrics.definitions import STORAGE_OUTAGES
from shared.metrics.tally import Tally
from worker.consumer import heartbeat as heartbeat_module
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.slot import Slot
from worker.consumer.slot_health import read_health
from worker.consumer.worker_state import WorkerState

SLOT = Slot(
    name="gpu-0",
    model="flux2",
    device="cpu",
    revision="r",
    precision="fp32",
    engines=("exact", "ai-toolkit"),
    features=("merged",),
)


class Registry:
    """Stands for `ledger.workers`: notes the reports, and fails while `away`."""

    def __init__(self):
        self.reports, self.batches, self.removed, self.away, self.slots = [], [], [], False, 1
        self.asked, self.go = threading.Semaphore(0), None

    def beat(self, slot, report, *, batch=None):
        self.asked.release()
        if self.go is not None:
            assert self.go.wait(10)
        self._answer()
        self.reports.append((slot, report))
        self.batches.append(batch)
        return self.slots

    def remove(self, slot, *, batch=None):
        self._answer()
        self.batches.append(batch)
        self.removed.append((slot, len(self.reports)))

    def _answer(self):
        if self.away:
            raise LedgerUnavailable("Redis did not answer")


@pytest.fixture
def beating():
    workers, state, renderer, tally = Registry(), WorkerState(), SimpleNamespace(warm_key="base"), Tally()
    heartbeat = Heartbeat(SimpleNamespace(workers=workers), SLOT, state, renderer, tally=tally, counts_s=0)
    return SimpleNamespace(workers=workers, state=state, renderer=renderer, heartbeat=heartbeat, tally=tally)


def test_a_heartbeat_holds_every_field_of_a_slots_report(beating):
    beating.heartbeat.send()

    assert beating.workers.reports == [
        (
            "gpu-0",
            {
                "model": "flux2",
                "device": "cpu",
                "revision": "r",
                "precision": "fp32",
                "engines": "exact,ai-toolkit",
                "features": "merged",
                "memory_bytes": "0",
                "state": "ready",
                "warm": "base",
                "adapters": "base",
                "item": "",
                "base_drift": "0",
            },
        )
    ]


def test_the_warm_key_is_read_from_the_renderer_at_each_heartbeat(beating):
    beating.heartbeat.send()
    beating.renderer.warm_key = "sha@1"
    beating.heartbeat.send()

    assert [report["warm"] for _, report in beating.workers.reports] == ["base", "sha@1"]


def test_a_change_of_the_state_is_sent_at_once(beating):
    beating.state.change_condition("faulty")

    assert [report["state"] for _, report in beating.workers.reports] == ["faulty"]


def test_a_heartbeat_without_redis_is_only_logged(beating, caplog):
    beating.workers.away = True

    beating.heartbeat.send()

    assert [record.getMessage() for record in caplog.records] == ["heartbeat not sent"]


def test_starting_twice_announces_once_and_stopping_joins_the_thread(beating):
    beating.heartbeat.start()
    beating.heartbeat.start()
    beating.heartbeat.stop()

    assert len(beating.workers.reports) == 1
    assert beating.workers.removed == [("gpu-0", 1)]
    assert not beating.heartbeat._thread.is_alive()


def test_a_heartbeat_under_way_cannot_put_a_withdrawn_slot_back(beating):
    beating.workers.go = threading.Event()
    sending = threading.Thread(target=beating.heartbeat.send)
    sending.start()
    assert beating.workers.asked.acquire(timeout=10)
    withdrawing = threading.Thread(target=beating.heartbeat.withdraw)
    withdrawing.start()

    beating.workers.go.set()
    sending.join(10)
    withdrawing.join(10)
    beating.heartbeat.send()

    assert beating.workers.removed == [("gpu-0", 1)]
    assert len(beating.workers.reports) == 1


def test_a_heartbeat_that_never_returns_does_not_keep_the_slot_from_being_withdrawn():
    workers, state = Registry(), WorkerState()
    heartbeat = Heartbeat(
        SimpleNamespace(workers=workers), SLOT, state, SimpleNamespace(warm_key="base"), withdraw_s=0.05
    )
    workers.go = threading.Event()
    sending = threading.Thread(target=heartbeat.send)
    sending.start()
    assert workers.asked.acquire(timeout=10)

    heartbeat.withdraw()

    assert workers.removed == [("gpu-0", 0)]
    workers.go.set()
    sending.join(10)


def test_each_heartbeat_is_noted_in_the_slots_health_file_until_it_stops(beating, tmp_path):
    renderer = SimpleNamespace(warm_key="base")
    heartbeat = Heartbeat(
        SimpleNamespace(workers=beating.workers), SLOT, beating.state, renderer, health_dir=tmp_path / "health"
    )

    heartbeat.send()
    [confirmed] = read_health(tmp_path / "health")
    beating.workers.away = True
    heartbeat.send()
    [unconfirmed] = read_health(tmp_path / "health")
    beating.workers.away = False
    heartbeat.stop()

    assert (confirmed.slot, confirmed.state) == ("gpu-0", "ready")
    assert unconfirmed.confirmed_s == confirmed.confirmed_s
    assert unconfirmed.sent_s > confirmed.sent_s
    assert read_health(tmp_path / "health") == []


def test_a_health_file_that_cannot_be_written_is_only_logged(beating, tmp_path, caplog):
    renderer = SimpleNamespace(warm_key="base")
    folder = tmp_path / "health"
    heartbeat = Heartbeat(SimpleNamespace(workers=beating.workers), SLOT, beating.state, renderer, health_dir=folder)
    folder.rmdir()

    heartbeat.send()

    assert [record.message for record in caplog.records] == ["health file not written"]
    assert len(beating.workers.reports) == 1


def test_a_folder_for_health_files_that_cannot_be_made_names_the_setting(beating, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(
        ServerFailed, match=r"FLUX2_WORKER_HEALTH_DIR .*/file/health cannot be created: Not a directory"
    ):
        Heartbeat(
            SimpleNamespace(workers=beating.workers),
            SLOT,
            beating.state,
            SimpleNamespace(warm_key="base"),
            health_dir=tmp_path / "file" / "health",
        )


def test_counts_travel_once_and_those_without_an_answer_again(beating):
    beating.workers.away = True
    beating.tally.count(STORAGE_OUTAGES)
    beating.heartbeat.send()
    beating.workers.away = False
    beating.tally.count(STORAGE_OUTAGES, by=2)

    for _ in range(3):
        beating.heartbeat.send()
    beating.tally.count(STORAGE_OUTAGES, by=4)
    beating.heartbeat.withdraw()

    sent = [batch and (batch.number, batch.counts["storage_outages"]) for batch in beating.workers.batches]
    assert sent == [(1, 1), (2, 2), None, (3, 4)]


def test_the_end_carries_what_was_counted_after_a_batch_without_an_answer(beating):
    beating.workers.away = True
    beating.tally.count(STORAGE_OUTAGES)
    beating.heartbeat.send()
    beating.workers.away = False
    beating.tally.count(STORAGE_OUTAGES, by=2)

    beating.heartbeat.withdraw()

    assert [(batch.number, batch.counts["storage_outages"]) for batch in beating.workers.batches] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("slots", "pause_s"), [(1, 15), (1000, 15), (2000, 30), (10_000, 60)])
def test_counts_travel_less_often_in_a_large_fleet(beating, monkeypatch, slots, pause_s):
    now_s = [1000.0]
    monkeypatch.setattr(heartbeat_module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    heartbeat = Heartbeat(
        SimpleNamespace(workers=beating.workers), SLOT, WorkerState(), beating.renderer, tally=beating.tally
    )
    beating.workers.slots = slots

    for later_s in (0, pause_s - 1, 1):
        now_s[0] += later_s
        beating.tally.count(STORAGE_OUTAGES)
        heartbeat.send()

    assert [batch and batch.counts["storage_outages"] for batch in beating.workers.batches] == [1, None, 2]


def test_only_some_heartbeats_carry_counts_and_the_end_carries_the_rest(beating):
    renderer = SimpleNamespace(warm_key="base")
    heartbeat = Heartbeat(
        SimpleNamespace(workers=beating.workers), SLOT, WorkerState(), renderer, tally=beating.tally, counts_s=3600
    )

    for _ in range(3):
        beating.tally.count(STORAGE_OUTAGES)
        heartbeat.send()
    heartbeat.withdraw()

    assert [batch and batch.counts["storage_outages"] for batch in beating.workers.batches] == [1, None, None, 2]
