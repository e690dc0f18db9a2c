"""Jobs with adapters that are kept elsewhere: the API reads their headers by ranges, and fixes what they are."""

import hashlib
import json
import re
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import FIRST, SECOND

from shared.storage.s3_client import make_client

ROOT = Path(__file__).parents[2]
LORA = "lora_r4_bf16.safetensors"
HUB_PATH = "hf://ann/robots/robot.safetensors"


@pytest.fixture
def data(goldens):
    """A real adapter by the trainer."""
    return (goldens / "adapters" / LORA).read_bytes()


class Shelf(ThreadingHTTPServer):
    """A web server with one file at any path, and a strong ETag or none."""

    daemon_threads = True

    def __init__(self, data, *, etag='"v1"'):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.etag = etag

    @property
    def place(self):
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        data = self.server.data
        part = data[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve_remote(api, hub, serve_api):
    """Serve the API with the hub's store and another host as the operator's own; returns a context."""

    def make(*places, **sources):
        private = ",".join([hub.store_place, *places])
        return serve_api(api.settings.model_copy(update={"sources": _sources(api, private, sources)}))

    return make


def _sources(api, private, fields):
    return type(api.settings.sources)(private_hosts=private, **fields)


def submit(api, path, **fields):
    body = {"model": "flux2", "prompts": [{"prompt": "a robot"}], "loras": [{"path": path, **fields}]}
    return api.http.post("/v1/inference", json=body)


def claimed_adapter(api, answer):
    """Return the adapter of the accepted job's first item, as a worker receives it."""
    assert answer.status_code == 202, answer.text
    claim = api.ledger.claim_next(["flux2"], slot="slot-1", boot="1", warm="base")
    assert claim.job_id == answer.json()["request_id"]
    return claim.spec.adapters[0]


def test_a_file_of_the_hub_is_fixed_by_its_commit_and_digest(hub, serve_remote, data):
    hub.push("ann/robots", {"robot.safetensors": data})
    with serve_remote() as api:
        answer = submit(api, "https://huggingface.co/ann/robots/blob/main/robot.safetensors", network_multiplier=0.5)
        ref = claimed_adapter(api, answer)

    assert ref.path == f"{HUB_PATH}@main"
    assert ref.pin == f"commit:{FIRST}"
    assert (ref.sha256, ref.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert ref.multiplier == 0.5
    assert ref.update_key == ref.sha256


def test_a_header_is_read_once_however_often_the_file_is_used(hub, serve_remote, data):
    hub.push("ann/robots", {"robot.safetensors": data})
    with serve_remote() as api:
        for _ in range(3):
            assert submit(api, HUB_PATH).status_code == 202

    assert hub.heads == 3
    assert hub.store_requests == 1
    assert sum(hub.bytes_sent.values()) <= 128 * 1024


def test_an_s3_object_is_fixed_by_its_etag(api, serve_remote, data):
    client = make_client(api.settings.s3, endpoint_url=api.settings.s3.endpoint_url, credentials={})
    client.put_object(Bucket=api.settings.s3.bucket, Key="loras/robot.safetensors", Body=data)
    path = f"s3://{api.settings.s3.bucket}/loras/robot.safetensors"
    with serve_remote() as remote:
        ref = claimed_adapter(remote, submit(remote, path))
    assert (ref.path, ref.sha256, ref.size_bytes) == (path, "", len(data))
    assert ref.pin.startswith('etag:"')
    assert re.fullmatch("pin-[0-9a-f]{64}", ref.update_key)


def test_a_bucket_that_the_operator_does_not_list_is_refused(api, serve_remote):
    with serve_remote(s3_buckets="loras-*, shared") as remote:
        answer = submit(remote, "s3://private/robot.safetensors")
    assert answer.status_code == 422
    assert "the operator lists buckets in FLUX2_SOURCES_S3_BUCKETS" in answer.json()["detail"]
    assert answer.json()["errors"][0]["path"] == "loras[0].path"


def test_the_uploads_of_tenants_are_not_read_by_their_place_in_the_bucket(api, serve_remote):
    with serve_remote() as remote:
        for prefix in ("", "any/prefix/"):
            path = f"s3://{api.settings.s3.bucket}/{prefix}tenant_uploads/acme/robot.safetensors/{64 * 'a'}.safetensors"
            answer = submit(remote, path)
            assert answer.status_code == 422
            assert "write upload:NAME" in answer.json()["detail"]


def test_only_the_bucket_of_the_images_is_read_unless_the_operator_lists_others(serve_remote):
    with serve_remote() as remote:
        answer = submit(remote, "s3://private/robot.safetensors")
    assert answer.status_code == 422
    assert "files are not read from the bucket 'private'" in answer.json()["detail"]


def test_a_file_on_a_web_server_is_fixed_by_its_etag(serve_http, serve_remote, data):
    shelf = serve_http(Shelf(data))
    with serve_remote(shelf.place) as api:
        ref = claimed_adapter(api, submit(api, f"http://{shelf.place}/download?id=7"))
    assert ref.path == f"http://{shelf.place}/download?id=7"
    assert (ref.pin, ref.sha256) == ('etag:"v1"', "")


def test_a_file_without_an_etag_needs_its_digest(serve_http, serve_remote, data):
    shelf = serve_http(Shelf(data, etag=None))
    url, digest = f"http://{shelf.place}/robot.safetensors", hashlib.sha256(data).hexdigest()
    with serve_remote(shelf.place) as api:
        refused = submit(api, url)
        ref = claimed_adapter(api, submit(api, url, sha256=digest))
    assert refused.status_code == 422
    assert "add the file's `sha256` to the request" in refused.json()["detail"]
    assert (ref.pin, ref.sha256) == (f"sha256:{digest}", digest)


def test_peft_config_next_to_a_remote_file_gives_its_strength(hub, serve_remote, data):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    hub.push("ann/robots", {"adapter_model.safetensors": data, "adapter_config.json": json.dumps(config).encode()})
    with serve_remote() as api:
        ref = claimed_adapter(api, submit(api, "hf://ann/robots/adapter_model.safetensors"))
    assert json.loads(ref.peft_config)["lora_alpha"] == 8


def test_a_branch_that_moved_on_is_another_adapter(hub, serve_remote, data):
    hub.push("ann/robots", {"robot.safetensors": data})
    with serve_remote() as api:
        first = claimed_adapter(api, submit(api, HUB_PATH))
        hub.push("ann/robots", {"robot.safetensors": data[:-2] + b"\0\0"}, commit=SECOND)
        second = claimed_adapter(api, submit(api, HUB_PATH))
    assert (first.pin, second.pin) == (f"commit:{FIRST}", f"commit:{SECOND}")
    assert first.update_key != second.update_key


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("hf://ann/robots/none.safetensors", 400, "'ann/robots' has no file 'none.safetensors' at 'main'"),
        ("https://example.com/a.safetensors", 422, "example.com"),
        ("https://127.0.0.1/a.safetensors", 422, "127.0.0.1"),
        ("hf://ann/robots/page.safetensors", 422, "answered with a web page; use the link that starts the download"),
        ("upload:none@" + "0" * 64, 400, "no such upload is here"),
    ],
)
def test_what_cannot_be_used_is_refused_before_a_gpu_is_booked(hub, serve_remote, data, path, status, reason):
    hub.push("ann/robots", {"robot.safetensors": data, "page.safetensors": b"<html>Log in</html>"})
    with serve_remote() as api:
        answer = submit(api, path)
    assert answer.status_code == status
    assert reason in answer.json()["detail"]
    assert answer.json()["errors"][0]["path"] == "loras[0].path"


def test_a_source_that_is_away_is_answered_with_a_time_to_come_back(hub, serve_remote, monkeypatch):
    away = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", away)
    with serve_remote() as api:
        answer = submit(api, HUB_PATH)
    assert (answer.status_code, answer.json()["code"]) == (503, "source_unavailable")
    assert answer.headers["Retry-After"]


def test_a_digest_that_is_not_the_files_is_refused(hub, serve_remote, adapter_root, data):
    hub.push("ann/robots", {"robot.safetensors": data})
    (adapter_root / "robot.safetensors").write_bytes(data)
    with serve_remote() as api:
        answers = [submit(api, path, sha256="0" * 64) for path in (HUB_PATH, "robot.safetensors")]
        fits = submit(api, "robot.safetensors", sha256=hashlib.sha256(data).hexdigest())
    assert [answer.status_code for answer in answers] == [422, 422]
    assert all("has the sha256" in answer.json()["detail"] for answer in answers)
    assert fits.status_code == 202


def test_an_air_gap_uses_local_files_only(hub, serve_remote, adapter_root, data):
    hub.push("ann/robots", {"robot.safetensors": data})
    (adapter_root / "robot.safetensors").write_bytes(data)
    with serve_remote(local_only=True) as api:
        refused, fits = submit(api, HUB_PATH), submit(api, "robot.safetensors")
    assert "FLUX2_SOURCES_LOCAL_ONLY allows no other files" in refused.json()["detail"]
    assert fits.status_code == 202
    assert hub.heads == 0


def test_a_remote_adapter_is_inspected_like_a_local_one(hub, serve_remote, adapter_root, data):
    hub.push("ann/robots", {"robot.safetensors": data})
    (adapter_root / "robot.safetensors").write_bytes(data)
    with serve_remote() as api:
        remote, local = (
            api.http.get("/v1/adapters", params={"path": path}).json() for path in (HUB_PATH, "robot.safetensors")
        )
    assert remote | {"path": ""} == local | {"path": ""}


def test_a_token_in_a_link_is_never_stored(redis_client, serve_remote):
    with serve_remote() as api:
        answer = submit(api, "https://civitai.com/api/download/models/1?token=very-secret")
    assert answer.status_code == 422
    assert "carries a secret in 'token'" in answer.json()["detail"]
    assert "very-secret" not in answer.text


def _documented_entries():
    """Return the entries of `loras` that docs/adapters.md shows, one for each kind of source."""
    text = (ROOT / "docs" / "adapters.md").read_text()
    section = text.partition("## Where adapters are kept")[2].partition("\n## ")[0]
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]


def test_the_documents_examples_name_files_that_jobs_can_use(api, hub, serve_http, serve_remote, adapter_root, data):
    hub.push("ann/robots", {"v2/robot.safetensors": data})
    client = make_client(api.settings.s3, endpoint_url=api.settings.s3.endpoint_url, credentials={})
    client.create_bucket(Bucket="my-loras")
    client.put_object(Bucket="my-loras", Key="robots/robot.safetensors", Body=data)
    (adapter_root / "my_lora_job").mkdir()
    (adapter_root / "my_lora_job" / "my_lora.safetensors").write_bytes(data)
    shelf = serve_http(Shelf(data, etag=None))

    entries = _documented_entries()
    assert len(entries) == 4
    with serve_remote(shelf.place, s3_buckets="my-loras") as remote:
        for entry in entries:
            # This host plays Civitai.
            path = entry.pop("path").replace("https://civitai.com/", f"http://{shelf.place}/")
            if "sha256" in entry:
                entry["sha256"] = hashlib.sha256(data).hexdigest()
            answer = submit(remote, path, **entry)
            assert answer.status_code == 202, answer.text


def _with_note(data):
    """Return an adapter with the same tensors and a longer header."""
    (count,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + count])
    header.setdefault("__metadata__", {})["note"] = "x" * 1000
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + count :]


def test_another_file_under_a_stated_digest_is_not_remembered_as_that_file(serve_http, serve_remote, data):
    # The host still has the version before the stated one.
    shelf = serve_http(Shelf(_with_note(data), etag=None))
    url, digest = f"http://{shelf.place}/robot.safetensors", hashlib.sha256(data).hexdigest()
    with serve_remote(shelf.place) as api:
        early = claimed_adapter(api, submit(api, url, sha256=digest))
        shelf.data = data
        ref = claimed_adapter(api, submit(api, url, sha256=digest))
    # The worker that downloads the first one finds that out.
    assert early.size_bytes != len(data)
    assert (ref.sha256, ref.size_bytes) == (digest, len(data))


def test_a_peft_config_in_s3_counts_as_it_is_at_each_submit(api, serve_remote, data):
    client = make_client(api.settings.s3, endpoint_url=api.settings.s3.endpoint_url, credentials={})
    bucket, alphas = api.settings.s3.bucket, []
    client.put_object(Bucket=bucket, Key="peft/adapter_model.safetensors", Body=data)
    with serve_remote() as remote:
        for alpha in (8, 2):
            config = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": alpha})
            client.put_object(Bucket=bucket, Key="peft/adapter_config.json", Body=config.encode())
            ref = claimed_adapter(remote, submit(remote, f"s3://{bucket}/peft/adapter_model.safetensors"))
            alphas.append(json.loads(ref.peft_config)["lora_alpha"])
    assert alphas == [8, 2]
