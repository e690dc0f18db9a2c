"""Streams of events over real HTTP; the tests act as the worker."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import fastapi.routing
import httpx2
import pytest

from api import stalled_streams
from api.events import jobs_feed, streams
from shared.job import AdapterRef, ItemError, Progress
from shared.ledger import Submission, keys
from shared.local.ports import pick_free_port
from shared.metrics.tally import PROCESS

POOLS = ("flux2",)


@pytest.fixture
def submit(api, item):
    """Accept a job of some items for a tenant."""

    def accept(job_id, items=2, tenant="default", **changes):
        specs = [item(prompt=f"prompt {index}", **changes) for index in range(items)]
        api.ledger.accept_all([Submission(job_id, specs, record={"warnings": []}, tenant=tenant)])
        return job_id

    return accept


@pytest.fixture
def claim(api):
    return lambda slot="gpu-0": api.ledger.claim_next(POOLS, slot=slot, boot="boot", warm="base")


@pytest.fixture
def watch():
    """A function for `with`: it opens a stream; `next(stream)` is its next event, None where it ends."""

    @contextmanager
    def open_stream(api, path, *, last_id=None, key=None, timeout_s=10):
        headers = {**(key or {}), **({"Last-Event-ID": last_id} if last_id else {})}
        with (
            httpx2.Client(base_url=api.url, timeout=timeout_s, verify=False) as http,
            http.stream("GET", path, headers=headers) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            yield events(answer.iter_lines())

    return open_stream


def events(lines):
    fields = {}
    for line in lines:
        if line.startswith(":"):
            yield SimpleNamespace(name="comment", data=None, id=None)
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield SimpleNamespace(name=fields["event"], data=json.loads(fields["data"]), id=fields.get("id"))
            fields = {}


def take(stream, until):
    """Return the first event that fits."""
    for event in stream:
        if until(event):
            return event
    raise AssertionError("the stream ended")


def of_job(job_id, **fields):
    """Whether a change of all jobs shows a job with these values."""

    def fits(event):
        jobs = (event.data or {}).get("jobs") or []
        return any(job["request_id"] == job_id and fields.items() <= job.items() for job in jobs)

    return fits


def job_of(event, job_id):
    return next(job for job in event.data["jobs"] if job["request_id"] == job_id)


def test_a_job_is_followed_from_its_snapshot_to_its_end(api, submit, claim, finish, watch):
    job = submit("job")
    state = {}

    def follow(stream, until):
        for event in stream:
            changes = dict(event.data)
            items = {item["index"]: item for item in state.get("items", [])}
            items |= {item["index"]: item for item in changes.pop("items", [])}
            state.update(changes, items=list(items.values()))
            if until():
                return event
        raise AssertionError("the stream ended")

    with watch(api, f"/v1/requests/{job}/events") as stream:
        first = next(stream)
        assert first.name == "snapshot"
        assert first.data == api.http.get(f"/v1/requests/{job}/status").json()
        state.update(first.data)

        one = claim()
        change = follow(stream, lambda: state["status"] == "in_progress")
        assert change.name == "change"
        assert [item["index"] for item in change.data["items"]] == [0]
        assert "model" not in change.data
        api.ledger.renew(one, Progress(stage="denoise", step=1, steps=2))
        follow(stream, lambda: state["items"][0]["progress"] == {"stage": "denoise", "step": 1, "steps": 2})
        finish(api, one)
        two = claim()
        follow(stream, lambda: state["items"][1]["status"] == "in_progress")
        api.ledger.commit(two, ItemError(code="run_failed", message="no", retryable=False))
        last = follow(stream, lambda: state["finished_at"])
        assert (last.data["status"], last.data["error"]) == ("failed", "no")
        end = next(stream)
        assert (end.name, end.data, end.id) == ("end", {}, last.id)
        assert list(stream) == []

    assert state == api.http.get(f"/v1/requests/{job}/status").json()


def test_a_job_that_has_ended_is_shown_once(api, submit, claim, finish, watch):
    job = submit("job", items=1)
    finish(api, claim())

    with watch(api, f"/v1/requests/{job}/events") as stream:
        found = list(stream)
    with watch(api, f"/v1/requests/{job}/events", last_id=found[0].id) as stream:
        resumed = list(stream)

    assert [event.name for event in found] == ["snapshot", "end"]
    assert [event.name for event in resumed] == ["end"]


def test_images_that_no_look_saw_running_are_shown_too(api, submit, claim, finish, watch):
    job = submit("job", items=3)

    with watch(api, f"/v1/requests/{job}/events") as stream:
        next(stream)
        finish(api, claim())
        api.ledger.cancel(job)
        change = take(stream, lambda event: event.data.get("status") == "canceled")

    assert {item["index"]: item["status"] for item in change.data["items"]} == {
        0: "succeeded",
        1: "canceled",
        2: "canceled",
    }


def test_all_jobs_come_with_what_a_list_of_them_shows(api, item, submit, claim, watch, slot_report):
    adapters = (AdapterRef(path="cat.safetensors", sha256="0", size_bytes=1, multiplier=1.0),)
    submit("job", adapters=adapters, requested_width=100)
    api.ledger.workers.beat("gpu-0", slot_report())
    api.ledger.renew(claim(), Progress(stage="denoise", step=1, steps=4))

    with watch(api, "/v1/events") as stream:
        snapshot = next(stream)

    assert snapshot.name == "snapshot"
    [job] = snapshot.data["jobs"]
    line = api.http.get("/v1/requests").json()["data"][0]
    assert {name: job[name] for name in line} == line
    shown = {name: job[name] for name in ("tenant", "progress", "priority", "adapters", "prompt", "images", "width")}
    assert shown == {
        "tenant": "default",
        "progress": 0.125,
        "priority": 5,
        "adapters": "cat.safetensors",
        "prompt": "prompt 0",
        "images": 2,
        "width": 100,
    }
    assert job["running"] == [{"index": 0, "stage": "denoise", "step": 1, "steps": 4}]
    status = api.http.get("/v1/requests/job/status").json()
    assert job["queue_position"] == status["queue_position"] == 0
    fleet = snapshot.data["fleet"]
    assert (fleet["slots"], fleet["slot_states"], fleet["queued"], fleet["running"]) == (1, {"ready": 1}, 1, 1)


def test_changes_of_all_jobs_bring_only_what_changed(api, submit, claim, finish, watch):
    submit("waiting", items=1, tenant="late")
    with watch(api, "/v1/events") as stream:
        assert [job["request_id"] for job in next(stream).data["jobs"]] == ["waiting"]

        submit("new", items=1)
        change = take(stream, of_job("new", status="in_queue"))
        assert [job["request_id"] for job in change.data["jobs"]] == ["new"]
        assert (change.data["fleet"]["queued"], "removed" in change.data) == (2, False)
        first = claim()
        take(stream, of_job(first.job_id, status="in_progress"))
        api.ledger.commit(first, ItemError(code="run_failed", message="why", retryable=False))
        change = take(stream, of_job(first.job_id, status="failed"))
        assert job_of(change, first.job_id)["error"] == "why"
        finish(api, claim())
        change = take(stream, lambda event: event.data.get("fleet", {}).get("seconds_per_image") is None)
        assert change.name == "change"


def test_jobs_that_ended_long_ago_or_are_forgotten_go(api, submit, watch, monkeypatch, redis_client):
    monkeypatch.setattr("api.events.jobs_feed.ENDED_JOBS", 1)
    for job in ("one", "two"):
        api.ledger.cancel(submit(job))

    with watch(api, "/v1/events") as stream:
        assert [job["request_id"] for job in next(stream).data["jobs"]] == ["two"]
        api.ledger.cancel(submit("three"))
        change = take(stream, of_job("three", status="canceled"))
        assert change.data.get("removed") == ["two"]
        redis_client.delete("flux2:job:three")
        assert take(stream, lambda event: event.data.get("removed")).data["removed"] == ["three"]


def test_of_many_jobs_the_running_and_the_newest_are_shown(api, submit, claim, watch, monkeypatch):
    monkeypatch.setattr("api.events.jobs_feed.OPEN_JOBS", 2)
    for job in ("one", "two", "three"):
        submit(job, items=1)
    claim()

    with watch(api, "/v1/events") as stream:
        assert {job["request_id"] for job in next(stream).data["jobs"]} == {"one", "three"}


def test_jobs_that_end_before_they_are_shown_fill_no_memory(api, submit, watch, monkeypatch):
    monkeypatch.setattr(jobs_feed, "OPEN_JOBS", 1)
    monkeypatch.setattr(jobs_feed, "_KNOWN_JOBS", 3)

    with watch(api, "/v1/events") as stream:
        next(stream)
        for number in range(6):
            submit(f"job {number}")
        take(stream, of_job("job 5"))
        [feed] = api.services.event_streams._feeds.values()
        assert list(feed._open) == ["job 5", "job 4", "job 3"]


def test_a_record_that_cannot_be_read_stops_no_other_stream(api, submit, claim, watch, redis_client, make_key):
    acme, other = make_key(tenant="acme"), make_key(tenant="other")
    submit("good", tenant="acme")
    submit("bad", tenant="other")

    with watch(api, "/v1/events", key=acme) as stream, watch(api, "/v1/events", key=other) as broken:
        assert [next(each).name for each in (stream, broken)] == ["snapshot"] * 2
        redis_client.hset(keys.job("bad"), "state", "a state of a later version")
        api.ledger.cancel("good", tenant="acme")

        take(stream, of_job("good", status="canceled"))
        take(broken, lambda event: event.data.get("removed") == ["bad"])


def test_a_stream_goes_on_after_its_last_event_in_another_process(api, serve_api, submit, claim, watch):
    submit("job")
    with watch(api, "/v1/events") as all_jobs, watch(api, "/v1/requests/job/events") as one_job:
        before = next(all_jobs).id, next(one_job).id

    with serve_api(api.settings) as other:
        with (
            watch(other, "/v1/events", last_id=before[0]) as all_jobs,
            watch(other, "/v1/requests/job/events", last_id=before[1]) as one_job,
        ):
            # The estimates, which other processes make at other times.
            assert set(next(one_job).data) == {"eta_s", "eta_range_s"}
            assert next(all_jobs).name == "change"
            claim()
            assert "items" in take(one_job, lambda event: event.data.get("status") == "in_progress").data
            take(all_jobs, of_job("job", status="in_progress"))
        with watch(other, "/v1/events", last_id=before[0]) as all_jobs:
            assert next(all_jobs).name == "snapshot"


def test_a_tenant_watches_its_own_jobs_alone(api, submit, make_key, watch, claim):
    submit("theirs", tenant="other")
    submit("ours", tenant="acme")
    acme, admin = make_key(tenant="acme"), make_key(tenant="ops", roles=["admin"])

    with watch(api, "/v1/events?previews=true", key=acme) as stream:
        snapshot = next(stream)
        for slot in ("gpu-0", "gpu-1"):
            api.ledger.previews.store(claim(slot).item_id, step=1, steps=2, image_webp=b"picture")
        change = take(stream, of_job("ours", status="in_progress"))
        preview = take(stream, lambda event: event.name == "preview")
    assert [job["request_id"] for job in snapshot.data["jobs"]] == ["ours"]
    assert (snapshot.data["fleet"]["queued"], change.data["fleet"]["running"]) == (2, 1)
    assert preview.data["request_id"] == "ours"
    with watch(api, "/v1/events", key=admin) as stream:
        assert {job["request_id"] for job in next(stream).data["jobs"]} == {"ours", "theirs"}
    with watch(api, "/v1/events?tenant=other", key=admin) as stream:
        assert {job["request_id"] for job in next(stream).data["jobs"]} == {"theirs"}

    assert api.http.get("/v1/events?tenant=other", headers=acme).status_code == 403
    assert api.http.get("/v1/requests/theirs/events", headers=acme).status_code == 404
    assert api.http.get("/v1/requests/nothing/events", headers=acme).status_code == 404
    assert api.http.get("/v1/events", headers=make_key(roles=["submit"])).status_code == 403


def test_previews_come_to_those_who_want_them(api, submit, claim, watch, redis_client, wait_until):
    job = submit("job")
    item = claim()
    assert not redis_client.exists("flux2:preview_wanted")

    with (
        watch(api, f"/v1/requests/{job}/events?previews=true") as seeing,
        watch(api, f"/v1/requests/{job}/events") as blind,
    ):
        assert {next(seeing).name, next(blind).name} == {"snapshot"}
        wait_until(lambda: redis_client.exists("flux2:preview_wanted"), what="the wish for previews")
        api.ledger.previews.store(item.item_id, step=3, steps=25, image_webp=b"picture")
        preview = take(seeing, lambda event: event.name == "preview")
        assert preview.data == {
            "request_id": job,
            "index": 0,
            "step": 3,
            "steps": 25,
            "image": "data:image/webp;base64,cGljdHVyZQ==",
        }
        # Who comes later sees the last one.
        with watch(api, "/v1/events?previews=true") as late:
            assert next(late).name == "snapshot"
            assert take(late, lambda event: event.name == "preview").data == preview.data
        api.ledger.cancel(job)
        api.ledger.commit(item, None)
        assert [event.name for event in blind if event.name != "change"] == ["end"]


def test_a_stream_outlives_an_outage_of_redis(api, submit, claim, watch, redis_server, wait_until):
    submit("job")

    with watch(api, "/v1/events") as all_jobs, watch(api, "/v1/requests/job/events") as one_job:
        assert {next(all_jobs).name, next(one_job).name} == {"snapshot"}
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            # Each answer comes after a failed read, so that the poller has had some too.
            refused = [api.http.get("/v1/requests/job/events").status_code for _ in range(3)]
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        wait_until(lambda: api.http.get("/v1/requests/job/status").is_success, what="Redis' return")
        claim()
        take(all_jobs, of_job("job", status="in_progress"))
        assert take(one_job, lambda event: event.data.get("status") == "in_progress").name == "change"

    assert refused == [503] * 3


def test_a_process_that_stops_ends_its_streams_and_does_not_wait_for_their_callers(
    tmp_path, redis_url, submit, watch, wait_until
):
    submit("job")
    port = pick_free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLUX2_")},
        "FLUX2_REDIS_URL": redis_url,
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(tmp_path / "objects"),
    }
    command = [sys.executable, "-m", "shared.cli", "api", "--port", str(port)]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: is_listening(port), what="the API's start", timeout_s=60)
            other = SimpleNamespace(url=f"http://127.0.0.1:{port}")
            with watch(other, "/v1/events") as all_jobs, watch(other, "/v1/requests/job/events") as one_job:
                assert {next(all_jobs).name, next(one_job).name} == {"snapshot"}
                process.send_signal(signal.SIGTERM)
                # uvicorn would cut them off after 10 s.
                process.wait(timeout=8)
                assert "end" not in {event.name for stream in (all_jobs, one_job) for event in stream}
        finally:
            process.kill()


def is_listening(port):
    with socket.socket() as raw:
        return raw.connect_ex(("127.0.0.1", port)) == 0


def test_a_stream_ends_after_a_while_so_that_its_key_is_checked_again(api, watch, monkeypatch):
    monkeypatch.setattr(streams, "_LONGEST_S", 0.5)

    with watch(api, "/v1/events") as stream:
        assert {event.name for event in stream} <= {"snapshot", "change"}


def test_a_stream_counts_as_answered_when_it_starts(api, watch, monkeypatch, wait_until):
    observed = {}
    monkeypatch.setattr(PROCESS, "observe", lambda metric, value, *labels: observed.update({labels: value}))

    began = time.monotonic()
    with watch(api, "/v1/events") as stream:
        next(stream)
        first_event_s = time.monotonic() - began
        time.sleep(0.3)
    wait_until(lambda: ("GET", "/v1/events") in observed, what="the count of the answer")

    assert observed["GET", "/v1/events"] < first_event_s


def test_a_comment_keeps_a_quiet_stream_alive(api, submit, watch, monkeypatch):
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    submit("job")

    with watch(api, "/v1/requests/job/events") as stream:
        take(stream, lambda event: event.name == "comment")


def test_streams_beyond_the_limits_are_refused_and_places_come_back(
    api, submit, make_key, watch, monkeypatch, wait_until
):
    monkeypatch.setattr(streams, "LISTENERS_OF_TENANT", 1)
    monkeypatch.setattr(streams, "LISTENERS", 2)
    acme, other, third = (make_key(tenant=tenant) for tenant in ("acme", "other", "third"))

    with watch(api, "/v1/events", key=acme), watch(api, "/v1/events", key=other):
        for key in (acme, third):
            refused = api.http.get("/v1/events", headers=key)
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_listeners")
            assert refused.headers["Retry-After"] == "30"

    wait_until(lambda: not api.services.event_streams._taken, what="the end of the streams")
    with watch(api, "/v1/events", key=third) as stream:
        assert next(stream).name == "snapshot"


def test_a_caller_that_reads_nothing_loses_its_place(api, submit, claim, monkeypatch, wait_until):
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    # Long enough to see the stream.
    monkeypatch.setattr(stalled_streams, "_PATIENCE_S", 1.0)
    submit("job")
    # More than the buffers of a connection hold.
    api.ledger.previews.store(claim().item_id, step=1, steps=4, image_webp=bytes(8 * 1024**2))
    taken = api.services.event_streams._taken

    with socket.create_connection(("127.0.0.1", httpx2.URL(api.url).port)) as silent:
        silent.sendall(b"GET /v1/events?previews=true HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_until(lambda: taken, what="the stream")
        wait_until(lambda: not taken, what="the end of the stream")


def test_the_poller_ends_with_the_last_listener_and_reads_once_for_many(api, submit, watch, monkeypatch, wait_until):
    submit("job")
    found = api.services.event_streams
    reads = []
    read = api.ledger.live_jobs.read
    monkeypatch.setattr(api.ledger.live_jobs, "read", lambda items: reads.append(sorted(items)) or read(items))

    with (
        watch(api, "/v1/events") as one,
        watch(api, "/v1/events") as two,
        watch(api, "/v1/requests/job/events") as three,
    ):
        assert [next(stream).name for stream in (one, two, three)] == ["snapshot"] * 3
        assert len(found._feeds) == 2
        wait_until(lambda: len(reads) > 1, what="a second pass")
    assert all(items in ([], ["job"]) for items in reads)
    wait_until(lambda: found._poller.done() and found._closer.done(), what="the end of the passes")
    assert not found._feeds
