"""GET /v1/slots and /v1/queue over real HTTP: an admin sees everything, a tenant what is its own."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from flux2_client import AsyncClient, Client
from flux2_client.commands import app
from shared.job import AdapterRef, Progress
from shared.ledger import Submission

POOLS = ("flux2",)


@pytest.fixture
def fleet(api, item, slot_report):
    """Two slots that render for two tenants, and an image of each that waits."""
    for tenant in ("acme", "other"):
        refs = (AdapterRef(path=f"{tenant}.safetensors", sha256=tenant, size_bytes=1, multiplier=1.0),)
        api.ledger.accept_all([Submission(tenant, [item(adapters=refs)] * 2, record={}, tenant=tenant)])
    for slot in ("gpu-0", "gpu-1"):
        claim = api.ledger.claim_next(POOLS, slot=slot, boot="boot", warm="base")
        api.ledger.renew(claim, Progress(stage="denoise", step=1, steps=2))
        names = f"{claim.job_id}.safetensors"
        api.ledger.workers.beat(slot, slot_report(state="busy", item=claim.item_id, adapters=names, memory_bytes="8"))
    api.ledger.workers.beat("gpu-2", slot_report(adapters="secret.safetensors"))


@pytest.fixture
def admin(make_key):
    return make_key(tenant="ops", roles=["admin"])


def get(api, path, key, status=200):
    answer = api.http.get(path, headers=key)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_an_admin_sees_what_every_slot_renders_and_has_merged(api, fleet, admin):
    answer = get(api, "/v1/slots", admin)

    slots = {slot["name"]: slot for slot in answer["data"]}
    assert list(slots) == ["gpu-0", "gpu-1", "gpu-2"]
    assert (answer["has_more"], answer["next_cursor"]) == (False, None)
    item = slots["gpu-0"]["item"]
    assert {item["tenant"], slots["gpu-1"]["item"]["tenant"]} == {"acme", "other"}
    assert item["request_id"] == item["tenant"]
    assert item["adapters"] == slots["gpu-0"]["adapters"] == f"{item['tenant']}.safetensors"
    assert (item["stage"], item["step"], item["steps"], item["attempt"]) == ("denoise", 1, 2, 1)
    assert (slots["gpu-2"]["state"], slots["gpu-2"]["item"]) == ("ready", None)
    assert slots["gpu-2"]["adapters"] == "secret.safetensors"
    assert (slots["gpu-0"]["memory_bytes"], slots["gpu-2"]["memory_bytes"]) == (8, None)


def test_a_slot_shows_how_busy_its_gpu_is_if_it_knows(api, slot_report):
    load = {"gpu_memory_used_bytes": "7", "gpu_utilization": "0.97"}
    api.ledger.workers.beat("gpu-0", {**slot_report(), **load})
    api.ledger.workers.beat("cpu", slot_report())

    cpu, gpu = api.http.get("/v1/slots").json()["data"]

    assert (gpu["gpu_memory_used_bytes"], gpu["gpu_utilization"]) == (7, 0.97)
    assert (cpu["gpu_memory_used_bytes"], cpu["gpu_utilization"]) == (None, None)


def test_a_tenant_sees_all_slots_but_only_its_own_images_and_adapters(api, fleet, make_key):
    slots = get(api, "/v1/slots", make_key(tenant="acme"))["data"]

    assert [slot["state"] for slot in slots] == ["busy", "busy", "ready"]
    [own] = [slot for slot in slots if slot["item"]]
    assert (own["item"]["tenant"], own["adapters"]) == ("acme", "acme.safetensors")
    assert [slot["adapters"] for slot in slots if slot is not own] == [None, None]
    assert not any("other" in str(slot) or "secret" in str(slot) for slot in slots)


def test_a_tenant_sees_no_adapters_that_another_tenants_image_left_merged(api, fleet, make_key, slot_report):
    # Its image is stored there, while those of another tenant's failed image are still merged.
    [own] = [slot for slot in get(api, "/v1/slots", make_key(tenant="acme"))["data"] if slot["item"]]
    api.ledger.workers.beat(own["name"], slot_report(item="acme:0", adapters="other.safetensors"))

    [after] = [slot for slot in get(api, "/v1/slots", make_key(tenant="acme"))["data"] if slot["item"]]

    assert (after["item"], after["adapters"]) == (own["item"], None)


def test_slots_come_in_pages(api, fleet, admin):
    first = get(api, "/v1/slots?limit=2", admin)
    second = get(api, f"/v1/slots?limit=2&cursor={first['next_cursor']}", admin)

    assert [slot["name"] for slot in first["data"] + second["data"]] == ["gpu-0", "gpu-1", "gpu-2"]
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_the_queue_is_shown_by_tenant_and_adapters(api, fleet, admin):
    line = {"model": "flux2", "engine": "exact", "queued": 1, "running": 1}
    lines = [{"tenant": name, "adapters": f"{name}.safetensors", **line} for name in ("acme", "other")]
    sums = {"queued": 2, "running": 2, "images_per_minute": 0.0, "slots": 3, "slot_states": {"busy": 2, "ready": 1}}

    assert get(api, "/v1/queue", admin) == {**sums, "data": lines}
    assert get(api, "/v1/queue?limit=1", admin) == {**sums, "data": lines[:1]}
    own = {**sums, "queued": 1, "running": 1, "data": lines[1:]}
    assert get(api, "/v1/queue?tenant=other", admin) == own


def test_a_tenant_sees_its_own_queue_alone(api, fleet, make_key):
    key = make_key(tenant="acme")

    answer = get(api, "/v1/queue", key)

    assert (answer["queued"], answer["running"], answer["slots"]) == (1, 1, 3)
    assert [line["tenant"] for line in answer["data"]] == ["acme"]
    assert get(api, "/v1/queue?tenant=other", key, status=403)["code"] == "FORBIDDEN"
    assert get(api, "/v1/queue", make_key(tenant="empty"))["data"] == []


def top(api, key, *options):
    secret = key["Authorization"].removeprefix("Bearer ")
    done = CliRunner().invoke(app, ["top", *options, "--url", api.url, "--api-key", secret])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_both_clients_read_slots_and_queue(api, fleet, admin):
    key = admin["Authorization"].removeprefix("Bearer ")

    async def read():
        async with AsyncClient(api.url, api_key=key) as client:
            return [slot async for slot in client.slots(page_size=2)], await client.queue(tenant="acme")

    with Client(api.url, api_key=key) as client:
        slots, queue = list(client.slots(page_size=2)), client.queue(tenant="acme")

    assert asyncio.run(read()) == (slots, queue)
    assert [slot.name for slot in slots] == ["gpu-0", "gpu-1", "gpu-2"]
    assert [(line.tenant, line.queued, line.running) for line in queue.data] == [("acme", 1, 1)]


def test_top_prints_the_fleet_once_where_there_is_no_terminal(api, fleet, admin, make_key):
    summary, heading, *lines = top(api, admin).splitlines()

    assert summary == "3 slots (2 busy, 1 ready)   2 waiting   2 running   0 images/min"
    assert heading.split() == ["slot", "state", "gpu", "adapters", "tenant", "image", "stage", "step"]
    assert lines[2].split() == ["gpu-2", "ready", "-", "secret", "-", "-", "-", "-"]
    assert {line.split()[4] for line in lines[:2]} == {"acme", "other"}
    assert lines[3].split() == ["tenant", "adapters", "model", "waiting", "running"]
    assert [line.split() for line in lines[4:]] == [[name, name, "flux2", "1", "1"] for name in ("acme", "other")]
    assert "other" not in top(api, make_key(tenant="acme"), "--once")


def test_top_prints_what_the_api_answers_as_json(api, fleet, admin):
    shown = json.loads(top(api, admin, "--json", "--tenant", "acme"))

    assert shown == {
        "slots": get(api, "/v1/slots", admin)["data"],
        "queue": get(api, "/v1/queue?tenant=acme", admin),
    }
