"""deploy/haproxy as one door of two shards: two ledgers with an API each."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest

from shared.keys.record import KeyLimits, KeyRecord
from shared.keys.secret import KeyText, SecretHash
from shared.ledger import Ledger
from shared.local.ports import pick_free_port
from shared.settings import QueueSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "haproxy"
# Debian has it where only root looks.
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
BODY = {"model": "flux2", "prompts": [{"prompt": "a cat", "width": 64, "height": 64}], "loras": []}


@pytest.fixture
def shards(redis_client, redis_url, settings, serve_api, tmp_path):
    """Two APIs, whose ledgers are two databases of one Redis."""
    made = [
        settings(
            redis={"url": redis_url.removesuffix("/0") + f"/{number}"},
            storage={"backend": "directory", "directory": tmp_path / "objects"},
        )
        for number in (0, 1)
    ]
    with serve_api(made[0]) as first, serve_api(made[1]) as second:
        yield first, second


def make_key(api, tenant):
    """Make a key on a shard; return its id and the headers that send it."""
    ledger = Ledger.connect(api.settings.redis.url, QueueSettings(), timeout_s=5)
    text = KeyText.make()
    ledger.api_keys.add(
        KeyRecord(
            key_id=text.key_id,
            name="test",
            tenant=tenant,
            roles=frozenset({"submit", "read"}),
            secret=SecretHash.of(text.secret),
            created_ms=ledger.now_ms(),
            limits=KeyLimits(),
            expires_ms=None,
        )
    )
    return text.key_id, {"Authorization": f"Bearer {text}"}


@pytest.fixture
def open_door(shards, tmp_path, wait_until):
    """Start HAProxy with lines of both maps; return a client of it."""
    if HAPROXY is None:
        pytest.skip("no haproxy here; apt-get install haproxy")
    running = SimpleNamespace(process=None, http=None)

    def start(*, keys="", hosts="", second=None):
        (tmp_path / "keys.map").write_text((FOLDER / "keys.map").read_text() + keys)
        (tmp_path / "hosts.map").write_text((FOLDER / "hosts.map").read_text() + hosts)
        door = f"127.0.0.1:{pick_free_port()}"
        variables = {
            "FLUX2_DOOR": door,
            "FLUX2_SHARDS": str(tmp_path),
            "FLUX2_SHARD_A_API": urlsplit(shards[0].url).netloc,
            "FLUX2_SHARD_B_API": second or urlsplit(shards[1].url).netloc,
        }
        command = [HAPROXY, "-db", "-f", FOLDER / "haproxy.cfg"]
        running.process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
        running.http = httpx2.Client(base_url=f"http://{door}", timeout=10, verify=False)
        wait_until(answers, what="the door")
        return running.http

    def answers():
        try:
            return running.http.get("/health").status_code == 200
        except httpx2.TransportError:
            return False

    yield start

    running.http.close()
    running.process.terminate()
    running.process.wait(timeout=10)


def submit(http, headers):
    answer = http.post("/v1/inference", json=BODY, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


def test_every_call_of_a_tenant_goes_to_the_shard_of_its_key(shards, open_door):
    first, second = shards
    key_id, there = make_key(second, "acme")
    _, here = make_key(first, "studio")
    http = open_door(keys=f"{key_id} shard-b\n")

    job, other = submit(http, there), submit(http, here)

    assert [shard.ledger.queue_length("flux2") for shard in shards] == [1, 1]
    assert second.ledger.job(job) is not None
    assert http.get(f"/v1/requests/{job}", headers=there).json()["status"] == "in_queue"
    # Another shard's job does not exist, as another tenant's.
    assert http.get(f"/v1/requests/{job}", headers=here).status_code == 404
    assert http.post(f"/v1/requests/{job}/cancel", headers=there).json()["status"] == "canceled"
    assert http.get(f"/v1/requests/{other}", headers=here).json()["status"] == "in_queue"


def test_a_name_for_a_model_leads_to_its_shard_and_other_names_to_the_first(shards, open_door):
    first, second = shards
    make_key(first, "studio")
    _, headers = make_key(second, "acme")
    http = open_door(hosts="klein.example.com shard-b\n")

    job = submit(http, {**headers, "Host": "Klein.example.com:443"})

    assert second.ledger.job(job) is not None
    # The key is unknown to the first shard.
    assert http.post("/v1/inference", json=BODY, headers={**headers, "Host": "example.com"}).status_code == 401


def test_a_shard_without_an_api_closes_no_other(shards, open_door):
    first, second = shards
    key_id, lost = make_key(second, "acme")
    _, headers = make_key(first, "studio")
    # Nothing listens there.
    http = open_door(keys=f"{key_id} shard-b\n", second=f"127.0.0.1:{pick_free_port()}")

    assert http.get("/v1/requests", headers=lost).status_code == 503
    assert http.get("/v1/requests", headers=headers).status_code == 200


def test_a_caller_cannot_name_a_tenant_through_the_door(shards, open_door):
    http = open_door()
    # Without keys, an API on loopback believes the header.
    assert shards[0].http.post("/v1/inference", json=BODY, headers={"X-Tenant": "no tenant!"}).status_code == 422

    assert http.post("/v1/inference", json=BODY, headers={"X-Tenant": "no tenant!"}).status_code == 202
