"""A tenant sees, cancels and lists its own jobs and uploads alone; all others do not exist for it."""

import io

import pytest
from PIL import Image

from flux2_client import Client
from shared.job import ItemSpec
from shared.ledger import Ledger, keys, store
from shared.settings import QueueSettings

LORA = "lora_r4_bf16.safetensors"


def request(**fields):
    return {"model": "flux2", "prompts": [{"prompt": "a cat", "width": 64, "height": 64}], "loras": [], **fields}


def submit(api, key, **fields):
    answer = api.http.post("/v1/inference", json=request(**fields), headers=key)
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


def listed(api, key, **query):
    answer = api.http.get("/v1/requests", params=query, headers=key)
    assert answer.status_code == 200, answer.text
    return [job["request_id"] for job in answer.json()["data"]]


@pytest.fixture
def acme(make_key):
    return make_key(tenant="acme")


@pytest.fixture
def other(make_key):
    return make_key(tenant="other")


def test_the_job_of_another_tenant_answers_as_one_that_does_not_exist(api, acme, other):
    job = submit(api, acme)
    calls = [("GET", ""), ("GET", "/status"), ("GET", "/result"), ("POST", "/cancel"), ("POST", "/webhook/resend")]

    for method, verb in calls:
        foreign = api.http.request(method, f"/v1/requests/{job}{verb}", headers=other)
        absent = api.http.request(method, f"/v1/requests/{'0' * 36}{verb}", headers=other)
        assert foreign.status_code == absent.status_code == 404
        assert foreign.json() == {**absent.json(), "detail": f"Request not found: {job}"}

    assert api.http.get(f"/v1/requests/{job}", headers=acme).json()["status"] == "in_queue"
    assert api.http.post(f"/v1/requests/{job}/cancel", headers=acme).json()["status"] == "canceled"


def test_a_tenant_lists_its_own_jobs_and_an_admin_those_of_all(api, acme, other, make_key):
    first, foreign, second = submit(api, acme), submit(api, other), submit(api, acme)

    assert listed(api, acme) == [second, first]
    assert listed(api, other) == [foreign]
    assert listed(api, acme, limit=1) == [second]
    assert listed(api, acme, status="queued", model="flux2") == [second, first]
    assert listed(api, acme, status="failed") == []
    admin = make_key(tenant="ops", roles=["admin"])
    assert listed(api, admin) == [second, foreign, first]
    assert listed(api, admin, tenant="acme", limit=1) == [second]
    assert listed(api, admin, tenant="ops") == []
    assert listed(api, acme, tenant="acme") == [second, first]
    refused = api.http.get("/v1/requests", params={"tenant": "other"}, headers=acme)
    assert (refused.status_code, refused.json()["code"]) == (403, "FORBIDDEN")
    assert api.http.get("/v1/requests", params={"tenant": "../x"}, headers=admin).status_code == 422
    with Client(api.url, api_key=admin["Authorization"].removeprefix("Bearer ")) as client:
        assert [job.request_id for job in client.requests(tenant="other")] == [foreign]
    assert listed(api, make_key(tenant="ops")) == []


def test_an_admin_follows_and_cancels_the_job_of_another_tenant(api, acme, make_key):
    job, admin = submit(api, acme), make_key(tenant="ops", roles=["admin"])

    assert api.http.get(f"/v1/requests/{job}", headers=admin).status_code == 200
    assert api.http.post(f"/v1/requests/{job}/cancel", headers=admin).json()["status"] == "canceled"


def test_jobs_from_before_the_first_key_belong_to_the_tenant_default(api, make_key):
    job = submit(api, {})

    key, stranger = make_key(tenant="default"), make_key(tenant="acme")

    assert listed(api, key) == [job]
    assert api.http.get(f"/v1/requests/{job}", headers=key).status_code == 200
    assert api.http.get(f"/v1/requests/{job}", headers=stranger).status_code == 404


def test_an_idempotency_key_is_a_tenants_own(api, acme, other):
    sent = {"Idempotency-Key": "same"}

    jobs = [submit(api, {**key, **sent}) for key in (acme, other, acme)]

    assert jobs[0] == jobs[2] != jobs[1]


def test_uploads_belong_to_a_tenant(api, acme, other, goldens):
    data = (goldens / "adapters" / LORA).read_bytes()
    stored = api.http.put("/v1/adapters/mine.safetensors", content=data, headers=acme).json()
    path = stored["path"]

    assert path == f"upload:acme/mine.safetensors@{stored['sha256']}"
    listing = {
        name: api.http.get("/v1/adapters", headers=key).json()["data"] for name, key in (("a", acme), ("o", other))
    }
    assert [file["path"] for file in listing["a"]] == [path]
    assert listing["o"] == []
    for name in (path, "upload:mine.safetensors", f"upload:mine.safetensors@{stored['sha256']}"):
        submit(api, acme, loras=[{"path": name}])
        for foreign in ({"json": request(loras=[{"path": name}])},):
            refused = api.http.post("/v1/inference", headers=other, **foreign)
            assert (refused.status_code, refused.json()["code"]) == (400, "LORA_NOT_FOUND"), name
        inspected = api.http.get("/v1/adapters", params={"path": name}, headers=other)
        assert (inspected.status_code, inspected.json()["code"]) == (400, "LORA_NOT_FOUND")
    assert api.http.get("/v1/adapters", params={"path": path}, headers=acme).json()["sha256"] == stored["sha256"]
    assert api.http.delete("/v1/adapters/mine.safetensors", headers=other).status_code == 404
    assert api.http.delete("/v1/adapters/mine.safetensors", headers=acme).status_code == 409


def test_a_deletion_counts_the_jobs_of_its_own_tenant_alone(api, acme, other, goldens):
    data = (goldens / "adapters" / LORA).read_bytes()
    for key in (acme, other):
        assert api.http.put("/v1/adapters/same.safetensors", content=data, headers=key).status_code == 201
    submit(api, acme, loras=[{"path": "upload:same.safetensors"}])

    assert api.http.delete("/v1/adapters/same.safetensors", headers=other).status_code == 200
    assert api.http.delete("/v1/adapters/same.safetensors", headers=acme).status_code == 409


def test_reference_images_belong_to_a_tenant(api, acme, other):
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, "PNG")

    def upload(key):
        return api.http.post("/v1/uploads", content=data.getvalue(), headers={**key, "Content-Type": "image/png"})

    first = upload(acme)
    path, digest = first.json()["path"], first.json()["sha256"]
    prompts = [{"prompt": "a cat", "width": 64, "height": 64, "ctrl_img": path}]
    foreign = api.http.post("/v1/inference", json=request(prompts=prompts), headers=other)

    assert first.status_code == 201
    assert (foreign.status_code, foreign.json()["code"]) == (422, "invalid_reference")
    assert api.http.get(f"/v1/uploads/{digest}", headers=other).status_code == 404
    assert api.http.get(f"/v1/uploads/{digest}", headers=acme).status_code == 200
    submit(api, acme, prompts=prompts)
    # Who sends the bytes has the image, and does not learn that somebody else has it too.
    assert [upload(key).status_code for key in (other, other, acme)] == [201, 200, 200]
    submit(api, other, prompts=prompts)


# The index of each tenant's jobs, next to processes of an earlier version, which do not know it.


@pytest.fixture
def ledger(redis_client):
    return Ledger(redis_client, QueueSettings(retention_s=1, idempotency_ttl_s=1))


def spec():
    sizes = dict.fromkeys(("width", "height", "requested_width", "requested_height"), 64)
    return ItemSpec(
        model="flux2", prompt="", neg="", seed=1, num_inference_steps=1, guidance_scale=4, adapters=(),
        output_format="png", **sizes,
    )  # fmt: skip


def accept(ledger, job, tenant):
    ledger.accept(job, [spec()], record={}, tenant=tenant)


def accept_as_before(ledger, job, tenant):
    """Store a job as a version without the index does."""
    until = ledger.redis.get("flux2:tenants_until")
    accept(ledger, job, tenant)
    ledger.redis.zrem(f"flux2:tenant_jobs:{tenant}", job)
    if until is None:
        ledger.redis.delete("flux2:tenants_until")
    else:
        ledger.redis.set("flux2:tenants_until", until)


def jobs_of(ledger, tenant, **filters):
    return [job.job_id for job in ledger.jobs(before=None, limit=50, tenant=tenant, **filters).jobs]


def test_jobs_that_an_earlier_version_accepts_are_listed_at_once_and_indexed_later(ledger):
    accept(ledger, "new-1", "a")
    accept_as_before(ledger, "old-1", "a")
    accept(ledger, "new-2", "a")
    accept_as_before(ledger, "old-2", "b")

    assert jobs_of(ledger, "a") == ["new-2", "old-1", "new-1"]
    assert jobs_of(ledger, "b") == ["old-2"]
    assert ledger.index_tenants() == 3
    assert ledger.redis.zrange("flux2:tenant_jobs:a", 0, -1) == ["new-1", "old-1", "new-2"]
    assert jobs_of(ledger, "a") == ["new-2", "old-1", "new-1"]
    accept(ledger, "new-3", "a")
    assert ledger.index_tenants() == 0
    assert jobs_of(ledger, "a")[0] == "new-3"


def test_a_ledger_of_many_old_jobs_is_indexed_in_steps(ledger, monkeypatch):
    for number in range(1201):
        accept_as_before(ledger, f"old-{number}", "a")
    monkeypatch.setattr(store, "_INDEX_STEPS", 1)

    assert [ledger.index_tenants() for _ in range(4)] == [500, 500, 201, 0]


def test_a_listing_by_the_index_reads_the_jobs_of_its_tenant_alone(ledger):
    accept(ledger, "mine", "a")
    for number in range(600):
        accept(ledger, f"other-{number}", "b")
    ledger.redis.config_resetstat()

    page = ledger.jobs(before=None, limit=50, tenant="a")
    reads = {name: stats["calls"] for name, stats in ledger.redis.info("commandstats").items()}

    assert [job.job_id for job in page.jobs] == ["mine"]
    assert page.next_before is None
    assert reads["cmdstat_hmget"] == 1


def test_pages_of_the_index_and_of_the_common_listing_have_the_same_cursors(ledger):
    for number in range(6):
        accept(ledger, f"a-{number}", "a")
        accept(ledger, f"b-{number}", "b")
    first = ledger.jobs(before=None, limit=3, tenant="a")
    ledger.redis.delete("flux2:tenants_until")

    second = ledger.jobs(before=first.next_before, limit=3, tenant="a")

    assert [job.job_id for job in (*first.jobs, *second.jobs)] == [f"a-{number}" for number in reversed(range(6))]


def test_a_forgotten_job_leaves_the_index_whichever_version_sweeps(ledger, clock):
    ledger = Ledger(ledger.redis, QueueSettings(retention_s=1, idempotency_ttl_s=1), clock_ms=clock)
    for job in ("swept", "swept-before", "stays"):
        accept(ledger, job, "a")
    ledger.cancel("swept")
    clock.advance(10)

    assert ledger.forget_ended() == 1
    assert ledger.redis.zrange("flux2:tenant_jobs:a", 0, -1) == ["swept-before", "stays"]
    # As a process of an earlier version leaves it.
    ledger.redis.delete(keys.job("swept-before"))
    ledger.redis.zrem(keys.JOBS, "swept-before")
    assert jobs_of(ledger, "a") == ["stays"]
    assert ledger.redis.zrange("flux2:tenant_jobs:a", 0, -1) == ["stays"]


def test_a_cancel_for_a_tenant_changes_only_its_own_job(ledger):
    accept(ledger, "job", "a")

    assert not ledger.cancel("job", tenant="b")
    assert ledger.job("job", tenant="b") is None
    assert ledger.job("job", tenant="a").state == "queued"
    assert ledger.cancel("job", tenant="a")
