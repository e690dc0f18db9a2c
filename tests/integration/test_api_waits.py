"""`Prefer: wait` over real HTTP; the tests act as the worker."""

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from api import job_waits
from shared.ledger import keys


@pytest.fixture
def post(api):
    def send(prefer, *, timeout_s=10, **headers):
        body = {"model": "flux2", "loras": [], "prompts": [{"prompt": "a cat"}]}
        if prefer:
            headers["Prefer"] = prefer
        with httpx2.Client(base_url=api.url, timeout=timeout_s) as http:
            return http.post("/v1/inference", json=body, headers=headers)

    return send


@pytest.fixture
def claim(api, wait_until):
    def take():
        return wait_until(
            lambda: api.ledger.claim_next(("flux2",), slot="gpu-0", boot="boot", warm="base"), what="an item"
        )

    return take


def test_a_call_that_waits_is_answered_with_the_images(api, post, claim, finish, redis_client, wait_until):
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(post, "respond-async, wait=9", **{"Idempotency-Key": "key"})
        wait_until(lambda: redis_client.llen(keys.wake_list("flux2")), what="a wake-up before the answer")
        item = claim()
        assert not waiting.done()
        # A client that lost its connection waits for the same job.
        again = pool.submit(post, "wait=9", **{"Idempotency-Key": "key"})
        finish(api, item)
        answers = waiting.result(), again.result()

    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["Preference-Applied"] == "wait=9"
        assert answer.headers["Content-Location"].endswith(f"/v1/requests/{item.job_id}/result")
        assert "Retry-After" not in answer.headers
        assert answer.json()["status"] == "succeeded"
        assert httpx2.get(answer.json()["outputs"]["images"][0]["url"]).content == b"picture"
    assert answers[1].headers["Idempotency-Replayed"] == "true"


def test_a_call_that_need_not_wait_or_waited_in_vain_is_answered_as_always(api, post, make_key, monkeypatch):
    for prefer in (None, "wait=0", "wait=soon", "respond-async"):
        answer = post(prefer)
        assert answer.status_code == 202
        assert "Preference-Applied" not in answer.headers

    late = post("wait=1")
    assert (late.status_code, late.headers["Preference-Applied"]) == (202, "wait=1")
    assert api.http.get(late.json()["status_url"]).json()["status"] == "in_queue"

    # The result has links to images, which a key without the role `read` must not get.
    blind = post("wait=5", **make_key(roles=("submit",)))
    assert blind.status_code == 202
    assert "Preference-Applied" not in blind.headers

    monkeypatch.setattr(job_waits, "PLACES_OF_TENANT", 0)
    crowded = post("wait=5", **make_key(roles=("submit", "read")))
    assert crowded.status_code == 202
    assert "Preference-Applied" not in crowded.headers


def test_many_waiting_calls_share_the_reads_and_a_caller_that_leaves_only_leaves(
    api, post, claim, finish, monkeypatch, wait_until
):
    reads = []
    find_ended = api.ledger.find_ended
    monkeypatch.setattr(api.ledger, "find_ended", lambda jobs: reads.append(len(jobs)) or find_ended(jobs))
    waits = api.services.job_waits

    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(post, "wait=30", timeout_s=30) for _ in range(10)]
        wait_until(lambda: 10 in reads, what="a read for all calls")
        with pytest.raises(httpx2.ReadTimeout):
            post("wait=30", timeout_s=0.5)
        wait_until(lambda: waits._taken.total() == 10, what="the end of the wait of a caller that left")
        items = [claim() for _ in range(11)]
        for item in items:
            finish(api, item)
        assert {call.result().status_code for call in calls} == {200}

    assert {api.ledger.job(item.job_id).state for item in items} == {"succeeded"}
    assert waits._waiting == {}
    wait_until(waits._poller.done, what="the end of the polls")
