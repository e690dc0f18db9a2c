"""Sweeps over HTTP: accepted as a whole, followed and canceled under one id, and forgotten with their jobs."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import anyio
import httpx2
import pytest
from finished_images import draw_picture, finish_queued, store_image

from api import submit_cache
from api.webhook_message import message_body
from flux2_client import AsyncClient, Client
from shared.adapters.validate import validate_adapter
from shared.errors import ApiError, LedgerUnavailable
from shared.job import ItemError
from shared.ledger import Ledger, keys
from shared.ledger.sweeps import Sweeps
from shared.local.ports import pick_free_port
from shared.request_references import RequestReferences
from shared.settings import QueueSettings

FILES = {
    "a_000000500.safetensors": "lora_r4_bf16",
    "a.safetensors": "lora_subset_bf16",
    "style.safetensors": "lora_mixedrank_bf16",
}
PROMPTS = [{"prompt": "[trigger] a cat", "width": 64, "height": 64}, {"prompt": "a dog", "width": 128, "height": 64}]
CHECKPOINTS = [
    {"path": "a_000000500.safetensors", "label": "500"},
    {"path": "a.safetensors", "label": "final"},
    {"path": None},
]
JOBS = [("500", 0.5), ("500", 1.0), ("final", 0.5), ("final", 1.0), ("base", None)]


@pytest.fixture
def sweep(adapter_root, goldens):
    """The body of a sweep of five jobs with four images each."""
    for name, source in FILES.items():
        shutil.copyfile(goldens / "adapters" / f"{source}.safetensors", adapter_root / name)
    return {
        "model": "flux2",
        "prompts": PROMPTS,
        "trigger_word": "sks",
        "checkpoints": CHECKPOINTS,
        "multipliers": [0.5, 1],
        "seeds": [42, 43],
        "steps": [4],
    }


def submit(api, body, **headers):
    answer = api.http.post("/v1/sweeps", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer


def refused(api, body, headers=None, path="/v1/sweeps"):
    answer = api.http.post(path, json=body, headers=headers)
    problem = answer.json()
    fields = [error["path"] for error in problem.get("errors", [])]
    return answer.status_code, problem["code"], fields[0] if fields else None


def counts(queued=0, running=0, succeeded=0, failed=0, canceled=0):
    return {"queued": queued, "running": running, "succeeded": succeeded, "failed": failed, "canceled": canceled}


def test_a_sweep_is_followed_under_one_id_to_its_images(api, sweep, redis_client):
    answer = submit(api, sweep)

    body = answer.json()
    url = f"/v1/sweeps/{body['sweep_id']}"
    assert answer.headers["location"].endswith(f"{url}/status")
    assert (body["status"], body["images"]) == ("queued", 20)
    assert [(job["checkpoint"], job["multiplier"]) for job in body["jobs"]] == JOBS
    status = api.http.get(f"{url}/status").json()
    assert (status["status"], status["counts"], status["progress"]) == ("queued", counts(queued=20), 0)
    assert {job["status"] for job in status["jobs"]} == {"queued"}
    # Each job is one as any other.
    ids = [job["request_id"] for job in body["jobs"]]
    listed = api.http.get("/v1/requests").json()["data"]
    assert sorted(job["request_id"] for job in listed) == sorted(ids)
    assert {api.http.get(f"/v1/requests/{job}").json()["sweep_id"] for job in ids} == {body["sweep_id"]}

    claim = api.ledger.claim_next(["flux2"], slot="s", boot="b", warm="base")
    running = api.http.get(f"{url}/status")
    assert running.json()["status"] == "running"
    assert running.json()["counts"] == counts(queued=19, running=1)
    assert int(running.headers["retry-after"]) >= 1
    assert api.ledger.release(claim, "drain") == "queued"
    assert finish_queued(api) == 20

    ended = api.http.get(f"{url}/status")
    assert "retry-after" not in ended.headers
    assert (ended.json()["status"], ended.json()["counts"]) == ("succeeded", counts(succeeded=20))
    assert (ended.json()["progress"], ended.json()["finished_at"] is None) == (1, False)
    message = json.loads(message_body(api.ledger.job(ids[0]), base_url=""))
    assert message["data"]["sweep_id"] == body["sweep_id"]
    result = api.http.get(f"{url}/result").json()
    assert {axis["name"]: axis["values"] for axis in result["axes"]} == {
        "checkpoint": ["500", "final", "base"],
        "multiplier": [0.5, 1.0, None],
        "seed": [42, 43],
        "prompt": ["sks a cat", "a dog"],
        "size": ["64x64", "128x64"],
        "steps": [4],
        "guidance_scale": [4.0],
    }
    cells = result["cells"]
    assert [(cell["checkpoint"], cell["multiplier"]) for cell in cells[::4]] == JOBS
    assert [(cell["prompt"], cell["size"], cell["seed"]) for cell in cells[:4]] == [
        (0, "64x64", 42),
        (0, "64x64", 43),
        (1, "128x64", 42),
        (1, "128x64", 43),
    ]
    for cell in cells:
        image = cell["image"]
        assert (image["seed"], image["sample_steps"], image["guidance_scale"]) == (cell["seed"], 4, 4.0)
        assert image["prompt"] == ["sks a cat", "a dog"][cell["prompt"]]
        assert f"{image['width']}x{image['height']}" == cell["size"]
        paths = [(adapter["path"], adapter["multiplier"]) for adapter in image["adapters"]]
        name = {"500": "a_000000500.safetensors", "final": "a.safetensors"}.get(cell["checkpoint"])
        assert paths == ([(name, cell["multiplier"])] if name else [])


def test_the_pages_of_a_result_hold_each_image_once_and_the_clients_join_them(api, sweep):
    sweep_id = submit(api, sweep).json()["sweep_id"]
    finish_queued(api)
    whole = api.http.get(f"/v1/sweeps/{sweep_id}/result").json()

    pages, cursor = [], None
    while True:
        query = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = api.http.get(f"/v1/sweeps/{sweep_id}/result", params=query).json()
        pages.append([(cell["request_id"], cell["index"]) for cell in page["cells"]])
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert [len(page) for page in pages] == [7, 7, 6]
    assert [*chain(*pages)] == [(cell["request_id"], cell["index"]) for cell in whole["cells"]]
    beyond = api.http.get(f"/v1/sweeps/{sweep_id}/result", params={"cursor": "20"}).json()
    assert (beyond["cells"], beyond["has_more"]) == ([], False)

    with Client(api.url) as client:
        result = client.sweep_result(sweep_id, page_size=3)
        assert len(result.images) == 20
        assert result.images[19].pil().size == (128, 64)
        assert [line.sweep_id for line in client.sweeps(page_size=1)] == [sweep_id]

    async def read():
        async with AsyncClient(api.url) as client:
            found = await client.sweep_result(sweep_id, page_size=11)
            assert [line.sweep_id async for line in client.sweeps()] == [sweep_id]
            return (await client.sweep_status(sweep_id)).status, await found.images[0].bytes()

    status, picture = anyio.run(read)
    assert status == "succeeded"
    assert picture == api.http.get(whole["cells"][0]["image"]["url"]).content


def test_a_repeat_with_the_key_is_the_same_sweep_even_without_its_files(api, sweep, adapter_root):
    first = submit(api, sweep, **{"Idempotency-Key": "k"})
    (adapter_root / "a.safetensors").unlink()

    again = submit(api, sweep, **{"Idempotency-Key": "k"})

    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(api.http.get("/v1/requests").json()["data"]) == 5
    other = {**sweep, "seeds": [1]}
    assert refused(api, other, {"Idempotency-Key": "k"})[:2] == (422, "IDEMPOTENCY_KEY_REUSED")
    # A job's key is not a sweep's.
    job = {"model": "flux2", "prompts": PROMPTS, "loras": []}
    assert refused(api, job, {"Idempotency-Key": "k"}, "/v1/inference")[:2] == (422, "IDEMPOTENCY_KEY_REUSED")


def test_a_sweep_that_was_accepted_is_not_answered_with_an_error_of_a_later_read(api, sweep, monkeypatch):
    def fail(*_, **__):
        raise LedgerUnavailable("Redis does not answer")

    monkeypatch.setattr(Sweeps, "read", fail)

    first = submit(api, sweep, **{"Idempotency-Key": "k"})
    again = submit(api, sweep, **{"Idempotency-Key": "k"})

    assert [(job["checkpoint"], job["multiplier"]) for job in first.json()["jobs"]] == JOBS
    assert again.json() == first.json()
    listed = api.http.get("/v1/requests").json()["data"]
    assert sorted(job["request_id"] for job in listed) == sorted(job["request_id"] for job in first.json()["jobs"])


def test_the_same_sweep_that_is_sent_at_the_same_time_is_accepted_once(api, sweep):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: submit(api, sweep, **{"Idempotency-Key": "k"}), range(4)))

    assert len({answer.json()["sweep_id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 3
    assert len(api.http.get("/v1/requests").json()["data"]) == 5


def test_of_an_api_that_is_killed_while_it_accepts_the_sweep_is_there_as_a_whole_or_not(
    api, sweep, adapter_root, tmp_path, redis_client, redis_url, wait_until
):
    port = pick_free_port()
    environment = {
        **os.environ,
        "FLUX2_REDIS_URL": redis_url,
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(tmp_path / "objects"),
        "FLUX2_ADAPTERS_ROOT": str(adapter_root),
    }
    command = [sys.executable, "-m", "shared.cli", "api", "--port", str(port)]
    key = {"Idempotency-Key": "k"}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_answering(f"{url}/health"), what="the API's start", timeout_s=60)
            redis_client.client_pause(60_000, all=False)
            with ThreadPoolExecutor(1) as pool:
                sent = pool.submit(httpx2.post, f"{url}/v1/sweeps", json=sweep, headers=key, timeout=60)
                wait_until(lambda: has_large_write(redis_client), what="the write of the sweep", timeout_s=60)
                process.kill()
                process.wait(timeout=10)
                with pytest.raises(httpx2.HTTPError):
                    sent.result(timeout=60)
        finally:
            redis_client.client_unpause()
            process.kill()

    jobs = len(api.http.get("/v1/requests").json()["data"])
    assert jobs in (0, 5)
    assert len(api.http.get("/v1/sweeps").json()["data"]) == jobs / 5
    # The caller, which got no answer, sends it again.
    again = submit(api, sweep, **key).json()
    assert [line["sweep_id"] for line in api.http.get("/v1/sweeps").json()["data"]] == [again["sweep_id"]]
    assert len(api.http.get("/v1/requests").json()["data"]) == 5


def has_large_write(redis_client):
    """Return whether a command waits that is larger than those of caretakers."""
    return any(int(client["argv-mem"]) > 4000 for client in redis_client.client_list())


def is_answering(url):
    try:
        return httpx2.get(url, verify=False).is_success
    except httpx2.HTTPError:
        return False


def test_a_simulated_slot_merges_each_adapter_list_of_a_sweep_once(
    api, sweep, adapter_root, tmp_path, redis_url, s3, s3_server, wait_until
):
    environment = {
        **os.environ,
        **s3_server.environment(),
        "FLUX2_REDIS_URL": redis_url,
        "FLUX2_STORAGE_PREFIX": s3.storage.prefix,
        "FLUX2_ADAPTERS_ROOT": str(adapter_root),
        "FLUX2_WORKER_LOCK_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "shared.cli", "worker", "--simulate", "1", "--simulated-step-s", "0.001"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            sweep_id = submit(api, sweep).json()["sweep_id"]
            sweeps = api.ledger.sweeps
            wait_until(lambda: sweeps.read(sweep_id).finished_ms, 60, what="the end of the sweep")
            with Client(api.url) as client:
                cells = client.sweep_result(sweep_id).cells
                measured = client.estimate_sweep(sweep)
        finally:
            process.terminate()

    assert [cell.status for cell in cells] == ["succeeded"] * 20
    swaps = [(cell.checkpoint, cell.multiplier) for cell in cells if cell.image.pipeline.change != "none"]
    # The slot began with the base model, which is the fifth list.
    assert sorted(swaps) == JOBS[:4]
    assert measured.eta_s > 0
    assert measured.gpu_s > 0


def test_what_cannot_be_served_names_the_part_of_the_sweep_and_stores_nothing(api, sweep, redis_client):
    missing = [*CHECKPOINTS, {"path": "absent.safetensors"}]

    assert refused(api, {**sweep, "checkpoints": missing}) == (400, "LORA_NOT_FOUND", "checkpoints[3].path")
    code = refused(api, {**sweep, "loras": [{"path": "absent.safetensors"}]})
    assert code == (400, "LORA_NOT_FOUND", "loras[0].path")
    long = [PROMPTS[0], {"prompt": "[trigger]" * 900}]
    one = {"checkpoints": [], "multipliers": [], "seeds": []}
    too_long = refused(api, {**sweep, **one, "prompts": long, "trigger_word": "x" * 12})
    assert too_long == (400, "INVALID_REQUEST", "prompts[1].prompt")
    token = [PROMPTS[0], {"prompt": "a [I[IMG]MG] cat"}]
    assert refused(api, {**sweep, "prompts": token})[2] == "prompts[1].prompt"
    # 60 images never fit into a queue of 50.
    assert refused(api, {**sweep, "seeds": [1, 2, 3, 4, 5, 6]})[:2] == (400, "JOB_TOO_LARGE")
    assert refused(api, {**sweep, "seeds": list(range(1000))})[0] == 400
    assert refused(api, {**sweep, "seeds": [-1]})[:2] == (422, "VALIDATION_ERROR")
    assert redis_client.keys(f"{keys.PREFIX}sweep*") == redis_client.keys(f"{keys.PREFIX}job:*") == []


def test_a_sweep_that_does_not_fit_now_is_refused_as_a_whole(api, sweep):
    for _ in range(2):
        submit(api, sweep)

    status, code, _ = refused(api, sweep)

    assert (status, code) == (429, "queue_full")
    assert len(api.http.get("/v1/sweeps").json()["data"]) == 2
    assert len(api.http.get("/v1/requests").json()["data"]) == 10


def test_a_cancel_ends_what_is_unfinished_and_keeps_the_images(api, sweep):
    sweep_id = submit(api, sweep).json()["sweep_id"]
    running = api.ledger.claim_next(["flux2"], slot="s", boot="b", warm="base")
    done = api.ledger.claim_next(["flux2"], slot="t", boot="b", warm="base")
    api.ledger.commit(done, store_image(api, done, draw_picture(64, 64, 1)))

    with Client(api.url) as client:
        status = client.cancel_sweep(sweep_id)

        assert (status.status, status.counts) == ("running", counts(running=1, succeeded=1, canceled=18))
        assert api.ledger.commit(running, None) == "committed"
        ended = client.cancel_sweep(sweep_id)
        assert (ended.status, ended.counts) == ("canceled", counts(succeeded=1, canceled=19))
        assert ended.has_ended
        result = client.sweep_result(sweep_id)
    [kept] = [cell for cell in result.cells if cell.image is not None]
    assert (kept.request_id, kept.index) == (done.job_id, done.index)
    # A canceled image keeps its place among the axes.
    assert [(cell.seed, cell.status) for cell in result.cells[2:4]] == [(42, "canceled"), (43, "canceled")]


def test_failed_images_say_why(api, sweep):
    sweep_id = submit(api, {**sweep, "checkpoints": [], "multipliers": [], "prompts": PROMPTS[:1]}).json()["sweep_id"]
    claim = api.ledger.claim_next(["flux2"], slot="s", boot="b", warm="base")
    api.ledger.commit(claim, ItemError(code="not_finite", message="the output is NaN", retryable=False))
    finish_queued(api)

    assert api.http.get(f"/v1/sweeps/{sweep_id}/status").json()["status"] == "failed"
    result = api.http.get(f"/v1/sweeps/{sweep_id}/result").json()
    errors = [cell["error"] and cell["error"]["code"] for cell in result["cells"]]
    assert errors == ["not_finite", None]
    assert result["axes"][0]["values"] == result["axes"][1]["values"] == [None]


def test_a_sweep_of_another_tenant_does_not_exist(api, sweep, make_key):
    acme, other = make_key(tenant="acme"), make_key(tenant="other")
    admin = make_key(tenant="ops", roles=["admin"])
    sweep_id = submit(api, sweep, **acme).json()["sweep_id"]

    for method, verb in (("GET", "status"), ("GET", "result"), ("POST", "cancel")):
        foreign = api.http.request(method, f"/v1/sweeps/{sweep_id}/{verb}", headers=other)
        absent = api.http.request(method, f"/v1/sweeps/{'0' * 36}/{verb}", headers=other)
        assert foreign.status_code == absent.status_code == 404
        assert foreign.json() == {**absent.json(), "detail": f"Sweep not found: {sweep_id}"}

    def listed(key, **query):
        lines = api.http.get("/v1/sweeps", params=query, headers=key).json()["data"]
        return [line["sweep_id"] for line in lines]

    assert listed(acme) == listed(admin) == listed(admin, tenant="acme") == [sweep_id]
    assert listed(other) == listed(admin, tenant="other") == []
    assert api.http.get("/v1/sweeps", params={"tenant": "acme"}, headers=other).status_code == 403
    assert api.http.post(f"/v1/sweeps/{sweep_id}/cancel", headers=admin).json()["status"] == "canceled"


def test_the_limits_of_a_key_count_all_images_of_a_sweep(api, sweep, make_key):
    key = make_key(tenant="acme", queued_items=20, items_per_day=100, max_steps=4)

    submit(api, sweep, **key)

    status, code, _ = refused(api, sweep, key)
    assert (status, code) == (429, "key_limit_reached")
    assert refused(api, {**sweep, "seeds": [1, 2, 3]}, key)[:2] == (403, "KEY_LIMIT")
    assert refused(api, {**sweep, "steps": [4, 8]}, key) == (403, "KEY_LIMIT", "steps[1]")
    only = make_key(tenant="acme", adapters=("a_*",))
    assert refused(api, sweep, only) == (403, "KEY_LIMIT", "checkpoints[1].path")
    assert len(api.http.get("/v1/sweeps", headers=key).json()["data"]) == 1


def test_the_listing_reads_pages_from_the_newest_sweep_on(api, sweep):
    small = {**sweep, "checkpoints": [], "multipliers": []}
    ids = [submit(api, small).json()["sweep_id"] for _ in range(5)]

    pages, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.http.get("/v1/sweeps", params=query).json()
        pages.append([line["sweep_id"] for line in page["data"]])
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break

    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
    assert page["data"][0]["counts"] == counts(queued=4)
    assert page["data"][0]["images"] == 4


def test_a_sweep_stays_until_retention_after_its_last_end_and_goes_with_its_jobs(redis_client, redis_url, api, sweep):
    sweep_id = submit(api, sweep).json()["sweep_id"]
    first = api.http.get(f"/v1/sweeps/{sweep_id}/status").json()["jobs"][0]["request_id"]
    now_ms = api.ledger.now_ms()
    day_ms = 86_400_000
    settings = QueueSettings(cap=50, retention_s=7 * 86_400)

    def ledger(days):
        return Ledger(redis_client, settings, clock_ms=lambda: now_ms + int(days * day_ms))

    def remaining():
        return redis_client.exists(keys.sweep(sweep_id)), redis_client.zcard(keys.SWEEPS), redis_client.zcard(keys.JOBS)

    assert ledger(0).cancel(first)
    # The first job has ended nine days ago, and the others have not.
    assert ledger(9).forget_ended() == 0
    assert remaining() == (1, 1, 5)
    examined = redis_client.zscore(f"{keys.PREFIX}done", first)
    assert ledger(9.5).forget_ended() == 0
    # The sweep will stay for seven days after its end, so nobody looks at this job again before.
    assert redis_client.zscore(f"{keys.PREFIX}done", first) == examined == pytest.approx(now_ms + 9 * day_ms)
    for job in api.http.get(f"/v1/sweeps/{sweep_id}/status").json()["jobs"]:
        ledger(10).cancel(job["request_id"])
    assert ledger(16).forget_ended() == 0
    assert api.http.get(f"/v1/sweeps/{sweep_id}/status").json()["status"] == "canceled"
    assert ledger(17.01).forget_ended() == 5
    assert remaining() == (0, 0, 0)
    assert api.http.get(f"/v1/sweeps/{sweep_id}/status").status_code == 404
    assert redis_client.keys(f"{keys.PREFIX}*sweep*") == []


def test_a_sweep_of_which_an_earlier_version_forgot_a_job_is_not_shown(api, sweep, redis_client):
    body = submit(api, sweep).json()
    redis_client.delete(keys.job(body["jobs"][2]["request_id"]))

    assert api.http.get(f"/v1/sweeps/{body['sweep_id']}/status").status_code == 404
    assert api.http.get("/v1/sweeps").json()["data"] == []
    # Its record goes once it is the oldest one whose first job is gone.
    assert api.ledger.forget_ended() == 0
    assert redis_client.exists(keys.sweep(body["sweep_id"])) == 1
    redis_client.delete(keys.job(body["jobs"][0]["request_id"]))
    assert api.ledger.forget_ended() == 0
    assert redis_client.keys(f"{keys.PREFIX}*sweep*") == []


def test_each_file_is_read_once_and_all_adapters_before_the_first_reference_image(api, sweep, monkeypatch):
    read = []

    def count(lora, *arguments, **options):
        read.append(lora.path)
        return validate_adapter(lora, *arguments, **options)

    monkeypatch.setattr(submit_cache, "validate_adapter", count)
    monkeypatch.setattr(RequestReferences, "take", lambda *_: pytest.fail("a reference image was read"))
    prompts = [{**PROMPTS[0], "ctrl_img": "https://host.example/a.png"}]
    missing = {**sweep, "prompts": prompts, "checkpoints": [*CHECKPOINTS[:2], {"path": "absent.safetensors"}]}

    assert refused(api, missing) == (400, "LORA_NOT_FOUND", "checkpoints[2].path")
    assert read == ["a_000000500.safetensors", "a.safetensors", "absent.safetensors"]
    read.clear()
    submit(api, {**sweep, "loras": [{"path": "style.safetensors", "network_multiplier": 0.1}]})
    assert sorted(read) == ["a.safetensors", "a_000000500.safetensors", "style.safetensors"]


def test_an_estimate_accepts_nothing(api, sweep, redis_client):
    estimate = api.http.post("/v1/sweeps/estimate", json=sweep).json()

    assert (estimate["images"], estimate["jobs"], estimate["adapter_lists"]) == (20, 5, 5)
    assert estimate["pixel_steps"] == 5 * 4 * (2 * 64 * 64 + 2 * 128 * 64)
    # Nothing has been measured, and there are no prices.
    assert [estimate[name] for name in ("gpu_s", "eta_s", "eta_range_s", "price", "currency")] == [None] * 5
    assert redis_client.keys(f"{keys.PREFIX}job:*") == []
    assert refused(api, {**sweep, "multipliers": [1, 1]}, path="/v1/sweeps/estimate")[2] == "multipliers[1]"
    with Client(api.url) as client, pytest.raises(ApiError, match="no id of a sweep"):
        client.sweep_status("")
