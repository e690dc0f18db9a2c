"""No secret of the service, or of its callers, is in anything that the service leaves behind."""

import base64
import io
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import redis
import requests
from canaries import bucket_places, file_places, log_places, process_places, redis_places
from PIL import Image
from safetensors.torch import load_file, save

from shared.keys.record import KeyLimits, KeyRecord
from shared.keys.secret import KeyText, SecretHash
from shared.ledger import keys
from shared.settings import Settings
from shared.storage.s3_client import make_client

JOB_S = 120.0
SMALL = {"prompt": "a fox", "width": 64, "height": 64, "sample_steps": 2, "seed": 7}


class _Receiver(BaseHTTPRequestHandler):
    """Confirms webhooks to `/confirmed`, and refuses others."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204 if self.path.startswith("/confirmed") else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Caller:
    """Calls the API with a key, and keeps every answer."""

    def __init__(self, url, key):
        self._url = url
        self._key = key
        self.places = []

    def __call__(self, method, path, body=None, *, key=None, **options):
        answer = requests.request(
            method,
            self._url + path,
            data=body if isinstance(body, bytes) else json.dumps(body),
            headers={"Authorization": f"Bearer {key or self._key}", "Content-Type": "application/json"},
            timeout=60,
            **options,
        )
        self.places.append((f"answer to {method} {path}", f"{dict(answer.headers)}\n{answer.text}".encode()))
        return answer

    def submit(self, body):
        answer = self("POST", "/v1/inference", body)
        assert answer.status_code == 202, answer.text
        return answer.json()["request_id"]


@pytest.fixture
def admin_key(stack, client, canaries, wait_until):
    """The text of a key; with it every call needs one. Afterwards the service has no keys, as the other tests need."""
    ledger, text = stack.ledger(), KeyText.make()
    canaries.plant("API key", text.secret)
    ledger.api_keys.add(
        KeyRecord(
            key_id=text.key_id,
            name="canary",
            tenant="default",
            roles=frozenset({"submit", "read", "admin"}),
            secret=SecretHash.of(text.secret),
            created_ms=ledger.now_ms(),
            limits=KeyLimits(),
            expires_ms=None,
        )
    )

    def answer():
        stack.restart_dead()
        try:
            return requests.get(f"{stack.url}/v1/requests", timeout=5).status_code
        except requests.ConnectionError:
            return 0

    wait_until(lambda: answer() == 401, what="the key's effect")
    yield str(text)
    ledger.redis.delete(keys.API_KEYS)
    # A process that saw a key refuses callers without one for the rest of its life.
    os.kill(stack.pid("api"), signal.SIGKILL)
    wait_until(lambda: answer() == 200, 60, what="an API without keys")


@pytest.fixture
def receiver(serve_http):
    server = serve_http(ThreadingHTTPServer(("127.0.0.1", 0), _Receiver))
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def bucket(stack):
    """A client of the store of the processes, and the name of the bucket."""
    s3 = stack.servers.s3
    made = Settings(s3={"endpoint_url": s3.url, "bucket": s3.bucket, "addressing_style": "path"}).s3
    credentials = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": s3.secret_key}
    return make_client(made, endpoint_url=s3.url, credentials=credentials), s3.bucket


def start_flux2(stack, *arguments, api_key=None, **environment):
    """Start a command of the client, or of a host that has the settings in `environment`."""
    inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    keyed = {"FLUX2_API_KEY": api_key} if api_key else {}
    return subprocess.Popen(
        [sys.executable, "-m", "shared.cli", *arguments],
        env={**inherited, "COLUMNS": "200", "FLUX2_CLIENT_URL": stack.url, **keyed, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run_commands(stack, wrong, api_key, request_id):
    """Run commands that succeed, and that fail with a wrong secret; yield their arguments and outputs."""
    lost = {"FLUX2_REDIS_URL": f"redis://user:{wrong}@127.0.0.1:{stack.servers.redis.port}/0"}
    started = {
        "doctor": start_flux2(stack, "doctor", "--data", str(stack.data), HF_TOKEN=wrong),
        "doctor with a wrong login": start_flux2(
            stack, "doctor", **lost, AWS_ACCESS_KEY_ID="a" * 20, AWS_SECRET_ACCESS_KEY=wrong,
            FLUX2_S3_ENDPOINT_URL=stack.servers.s3.url, FLUX2_WEBHOOK_SECRET=f"whsec_{wrong}",
        ),
        "result": start_flux2(stack, "result", request_id, api_key=api_key),
        "list with a wrong key": start_flux2(stack, "list", api_key=f"flux2_{'0' * 12}_{wrong}"),
    }  # fmt: skip
    try:
        yield from process_places()
        for name, command in started.items():
            output, _ = command.communicate(timeout=120)
            assert output, name
            yield f"output of flux2 {name}", output
    finally:
        for command in started.values():
            command.kill()
            command.communicate()


def refused_bodies(place, leaked):
    """Bodies that the API refuses, with a secret near what is wrong."""
    yield b'{"hf_token": "' + leaked.encode() + b'", x'
    yield {"model": "flux2", "prompts": [SMALL], "loras": [], "hf_token": {"is": leaked}}
    yield {"model": "flux2", "prompts": [SMALL], "loras": [], "hf_token": leaked, "guidance": 1}
    yield {"model": "flux2", "prompts": [SMALL], "loras": [{"path": f"{place}/a?X-Amz-Signature={leaked}"}]}
    yield {"model": "flux2", "prompts": [SMALL], "loras": [{"path": f"https://u:{leaked}@{place[8:]}/a"}]}
    yield {"model": "flux2", "prompts": [{**SMALL, "ctrl_img": f"{place}/none.png?sig={leaked}"}], "loras": []}
    yield {"model": "flux2", "prompts": [{**SMALL, "ctrl_img": f"https://127.0.0.1/x?sig={leaked}"}], "loras": []}


def is_in_redis(place):
    return place.startswith(("redis key", "file appendonly"))


def shows_results(place):
    return re.fullmatch(r"answer to GET \S+/result|output of flux2 result", place)


def picture():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 40)).save(file, "PNG")
    return file.getvalue()


def test_no_secret_is_in_anything_that_the_service_leaves_behind(
    stack, hub, web, cache_folder, canaries, admin_key, receiver, bucket, wait_until
):
    client, bucket_name = bucket
    call = Caller(stack.url, admin_key)
    place = f"http://{web.place}"
    leaked = canaries.plant("secrets of a caller", secrets.token_hex(16))
    # The ledger needs the address until its webhook is delivered; nothing else may have it.
    hook = canaries.plant("token of a receiver", secrets.token_hex(16), allowed=is_in_redis)
    lora = save(load_file(stack.demo_adapter), metadata={"name": "canary"})
    hub.push("ann/canary", {"canary.safetensors": lora})
    hub.private.add("ann/canary")
    web.files["/canary.safetensors"] = lora
    web.files[f"/canary.png?X-Amz-Signature={leaked}"] = picture()
    client.put_object(Bucket=bucket_name, Key="canary.safetensors", Body=lora)
    common = {"model": "flux2", "hf_token": leaked}

    # One image with an adapter of each source, and a file with another digest than the job says.
    sources = [
        "hf://ann/canary/canary.safetensors",
        f"{place}/canary.safetensors",
        f"s3://{bucket_name}/canary.safetensors",
    ]
    succeeding = call.submit(
        {
            **common,
            "loras": [{"path": source} for source in sources],
            "prompts": [{**SMALL, "ctrl_img": f"{place}/canary.png?X-Amz-Signature={leaked}"}],
            "webhook_url": f"{receiver}/confirmed?token={hook}",
        }
    )
    failing = call.submit(
        {
            **common,
            "loras": [{"path": f"{place}/canary.safetensors", "sha256": "0" * 64}],
            "prompts": [SMALL],
            "webhook_url": f"{receiver}/refused?token={hook}",
        }
    )
    for body in refused_bodies(place, leaked):
        assert call("POST", "/v1/inference", body).status_code in (400, 404, 422), body
    wrong_key = canaries.plant("wrong API key", secrets.token_hex(32))
    assert call("GET", f"/v1/requests?api_key={wrong_key}", key=f"flux2_{'0' * 12}_{wrong_key}").status_code == 401

    def status(request_id):
        return call("GET", f"/v1/requests/{request_id}/status").json()

    def is_over(request_id):
        return (found := status(request_id))["status"] in ("succeeded", "failed") and found["webhook"]["attempts"] > 0

    for request_id in (succeeding, failing):
        wait_until(lambda request_id=request_id: is_over(request_id), JOB_S, what="the job's end and its webhook")
    assert (status(succeeding)["status"], status(failing)["status"]) == ("succeeded", "failed")
    assert call("GET", f"/v1/requests/{failing}/result").json()["outputs"] is None
    [image] = call("GET", f"/v1/requests/{succeeding}/result").json()["outputs"]["images"]
    # A caller gets it, and nobody else.
    [signature] = parse_qs(urlsplit(image["url"]).query)["X-Amz-Signature"]
    canaries.plant("signature of a result", signature, allowed=shows_results)
    assert requests.get(image["url"], timeout=30).status_code == 200
    metrics = call("GET", "/metrics")
    assert metrics.status_code == 200
    call("GET", "/ready")
    pages = [
        "/v1/requests",
        f"/v1/requests/{succeeding}",
        "/v1/adapters",
        "/v1/usage",
        "/v1/slots",
        "/v1/queue",
        "/v1/models",
        "/openapi.json",
    ]
    # The API reads the files with the service's secrets.
    for path in (*pages, *(f"/v1/adapters?path={source}" for source in sources)):
        assert call("GET", path).status_code == 200, path
    # The secrets were in use: the searches below could find them.
    assert {f"Bearer {canaries.secrets['header of a host']}"} == set(web.authorizations)
    assert hub.tokens_at_store == []

    given = canaries.plant("secrets that a command is given", secrets.token_hex(32))
    redis_client = redis.Redis.from_url(stack.servers.redis.url)
    by_design = {stack.settings_file, stack.servers.s3.folder / "identity.json"}
    assert [stat.S_IMODE(file.stat().st_mode) for file in by_design] == [0o600, 0o600]
    folders = [stack.data / name for name in ("redis", "s3", "api", "worker-0")]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 4

    def places():
        yield from redis_places(redis_client)
        yield from bucket_places(client, bucket_name)
        # Redis' log of commands, the logs of all processes, and the adapters that workers downloaded.
        yield from file_places(stack.servers.redis.folder)
        yield from log_places(stack.data)
        yield from file_places(cache_folder)
        yield from call.places
        yield from process_places()
        yield from run_commands(stack, given, admin_key, succeeding)

    found = canaries.search(places())

    assert found == []


def test_the_search_finds_a_secret_that_was_planted_anywhere(canaries, stack, bucket, tmp_path):
    client, bucket_name = bucket
    planted = canaries.plant("planted", secrets.token_hex(16))
    ledger = stack.ledger().redis
    values = {
        "planted:string": lambda key: ledger.set(key, base64.b64encode(f"user:{planted}".encode())),
        "planted:hash": lambda key: ledger.hset(key, planted, "1"),
        "planted:list": lambda key: ledger.rpush(key, "1", planted.encode().hex()),
        "planted:zset": lambda key: ledger.zadd(key, {planted: 1}),
        "planted:set": lambda key: ledger.sadd(key, planted.encode("utf-16-be")),
        "planted:stream": lambda key: ledger.xadd(key, {"a": planted}),
    }
    for key, write in values.items():
        write(key)
    client.put_object(Bucket=bucket_name, Key="planted/metadata", Body=b"", Metadata={"note": planted})
    client.put_object(Bucket=bucket_name, Key="planted/body", Body=b"bytes " + planted.encode())
    (tmp_path / "server.log").write_text(f"GET /?token={planted}")
    holder = subprocess.Popen(["sh", "-c", "read -r _", planted], stdin=subprocess.PIPE)
    try:
        found = canaries.search(
            [
                *redis_places(redis.Redis.from_url(stack.servers.redis.url)),
                *bucket_places(client, bucket_name),
                *file_places(tmp_path),
                *file_places(stack.servers.redis.folder),
                *process_places(),
            ]
        )
    finally:
        holder.communicate(b"\n")
        ledger.delete(*values)
        for name in ("metadata", "body"):
            client.delete_object(Bucket=bucket_name, Key=f"planted/{name}")

    places = {line.removeprefix("planted in ") for line in found if line.startswith("planted in ")}
    assert {f"redis key {key}" for key in values} <= places
    assert {"object planted/metadata", "object planted/body", "file server.log"} <= places
    assert f"arguments of process {holder.pid}" in places
    assert any(re.fullmatch(r"file appendonly.*", place) for place in places)
