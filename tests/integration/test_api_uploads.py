"""Adapter files that callers upload: over real HTTP into real S3, and back into jobs."""

import asyncio
import base64
import hashlib
import json
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from httpx2 import ASGITransport, AsyncClient

from api import upload_body
from api.app import create_app
from api.upload_body import UploadBody
from api.upload_slots import UploadSlots
from shared.errors import AdapterNotFound, UploadIncomplete, UploadsBusy
from shared.job import ItemSpec
from shared.ledger import keys
from shared.ledger.spec_parts import join_texts
from shared.sources.remote_file import Pin
from shared.sources.source import parse_source
from shared.sources.sources import Sources
from shared.storage.s3_writer import S3Writer
from worker.consumer.adapter_files import open_adapter_files

LORA = "lora_r4_bf16.safetensors"


@pytest.fixture
def data(goldens):
    """A real adapter by the trainer."""
    return (goldens / "adapters" / LORA).read_bytes()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def put(api, name, data, **headers):
    return api.http.put(f"/v1/adapters/{name}", content=data, headers=headers)


def uploaded(api, name, data):
    answer = put(api, name, data)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()["path"]


def stored(api):
    """Return the keys of all objects and unfinished uploads of this test's store."""
    store = api.store
    found = store._client.list_multipart_uploads(Bucket=store._bucket).get("Uploads", ())
    unfinished = [each["Key"] for each in found if each["Key"].startswith(store._prefix)]
    objects = [
        entry.key for folder in ("uploads", "unfinished_uploads") for entry in store.list_objects(folder, limit=99)
    ]
    return objects + unfinished


def problem(answer, status, code):
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    return body["detail"]


def large_lora(mebibytes):
    """Return a sound LoRA of one layer, whose factors are as large as wanted, and random."""
    # double_blocks.0.img_attn.proj of FLUX.2 [dev] is 6144 x 6144; the rank makes the size.
    rank = mebibytes * 2**20 // (2 * 6144 * 2)
    size = rank * 6144 * 2
    layer = "diffusion_model.double_blocks.0.img_attn.proj"
    header = json.dumps(
        {
            f"{layer}.lora_A.weight": {"dtype": "BF16", "shape": [rank, 6144], "data_offsets": [0, size]},
            f"{layer}.lora_B.weight": {"dtype": "BF16", "shape": [6144, rank], "data_offsets": [size, 2 * size]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(2 * size)


def with_header(header):
    return struct.pack("<Q", len(header)) + header


def submit(api, path, **fields):
    body = {"model": "flux2", "loras": [{"path": path}], "prompts": [{"prompt": "a cat"}], **fields}
    return api.http.post("/v1/inference", json=body)


def accepted(api, path):
    answer = submit(api, path)
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


# Upload.


def test_an_uploaded_file_is_stored_under_its_name_and_its_content(api, data):
    answer = put(api, "robot", data)

    body = answer.json()
    assert answer.status_code == 201, body
    assert body["path"] == f"upload:robot@{sha256(data)}"
    assert (body["name"], body["sha256"], body["size_bytes"]) == ("robot", sha256(data), len(data))
    assert (body["kind"], body["ranks"], body["must_ignore"]) == ("lora", [4], [])
    assert stored(api) == [f"uploads/robot/{sha256(data)}.safetensors"]
    assert api.store.get(f"uploads/robot/{sha256(data)}.safetensors") == data


def test_the_same_bytes_again_change_nothing(api, data):
    first, second = put(api, "robot", data), put(api, "robot", data)

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["path"] == second.json()["path"]
    assert len(stored(api)) == 1


def test_a_file_of_many_pieces_arrives_unchanged_with_a_digest_that_is_known_before_and_without(api):
    data = large_lora(20)

    known = put(api, "known", data, **{"X-Content-SHA256": sha256(data)})
    unknown = put(api, "unknown", data)

    for answer, name in ((known, "known"), (unknown, "unknown")):
        assert answer.status_code == 201, answer.text
        assert sha256(api.store.get(f"uploads/{name}/{sha256(data)}.safetensors")) == sha256(data)
    assert len(stored(api)) == 2


def test_two_uploads_of_the_same_file_at_once_give_one_object(api):
    data = large_lora(20)

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: put(api, "robot", data, **{"X-Content-SHA256": sha256(data)}), range(2)))

    assert all(answer.status_code in (200, 201) for answer in answers), [answer.text for answer in answers]
    assert stored(api) == [f"uploads/robot/{sha256(data)}.safetensors"]
    assert sha256(api.store.get(stored(api)[0])) == sha256(data)


@pytest.mark.parametrize("header", ["X-Content-SHA256", "Content-Digest"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_another_digest_than_stated_is_refused_and_nothing_is_stored(api, data, header, size):
    data = data if size == "small" else large_lora(20)
    other = hashlib.sha256(b"other").digest()
    value = (
        other.hex() if header == "X-Content-SHA256" else f"sha-512=:AAAA:, sha-256=:{base64.b64encode(other).decode()}:"
    )

    detail = problem(put(api, "robot", data, **{header: value}), 422, "DIGEST_MISMATCH")

    assert sha256(data) in detail
    assert other.hex() in detail
    assert stored(api) == []


def test_an_air_gap_takes_no_uploads(api, serve_api, data):
    sources = api.settings.sources.model_copy(update={"local_only": True})
    with serve_api(api.settings.model_copy(update={"sources": sources})) as gapped:
        problem(put(gapped, "robot.safetensors", data), 422, "INVALID_LORA")
    assert stored(api) == []


def test_the_digest_of_rfc_9530_is_accepted(api, data):
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()

    assert put(api, "robot", data, **{"Content-Digest": f"sha-256=:{digest}:"}).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Content-SHA256": "abc"},
        {"Content-Digest": "sha-256=:abc:"},
        {"Content-Digest": "sha-256=:" + "A" * 44 + ":"},
        {
            "X-Content-SHA256": "0" * 64,
            "Content-Digest": "sha-256=:" + base64.b64encode(bytes(range(32))).decode() + ":",
        },
    ],
)
def test_a_digest_without_a_sound_form_is_refused(api, data, headers):
    problem(put(api, "robot", data, **headers), 400, "INVALID_REQUEST")
    assert stored(api) == []


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "-rf", "a b", "a%00b", "a@b", "a:b", "ä", "a" * 129, "a%0A", "%2e%2e", "a\\b", "$(id)"]
)
def test_a_name_that_no_request_could_write_is_refused(api, data, name):
    answer = put(api, name.replace("..", "%2e%2e"), data)

    assert answer.status_code in (400, 404, 405), answer.text
    assert stored(api) == []


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "../requests", "a/../../b"])
def test_a_name_with_a_slash_is_no_route(api, data, name):
    assert put(api, name, data).status_code in (404, 405)
    assert stored(api) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>" + bytes(600), "not a safetensors file; this is"),
        (b"PK\x03\x04" + bytes(9000), "not a safetensors file; this is"),
        (struct.pack("<Q", 2**63) + b"{" + bytes(600), "the header should have"),
        (struct.pack("<Q", 700) + b'{"' + bytes(600), "the header should have 700 bytes, but only"),
        (with_header(b"{}"), "no tensors"),
        (with_header(b'{"a": 1}'), "'a'"),
        (with_header(b"{" + b" " * 70_000 + b"["), "JSON"),
        (
            with_header(b'{"model.layers.0.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
            "model.layers.0.weight",
        ),
        (
            with_header(b'{"a.lora_A.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(5),
            "1 bytes follow the last tensor",
        ),
    ],
)
def test_a_file_that_no_job_could_use_is_refused_and_nothing_is_stored(api, data, message):
    detail = problem(put(api, "robot", data), 422, "INVALID_LORA")

    assert message in detail
    assert stored(api) == []


def test_a_header_of_many_megabytes_is_checked(api):
    tags = json.dumps({"__metadata__": {f"tag{index}": "x" * 900_000 for index in range(20)}})[:-1]
    lora = large_lora(1)
    length = struct.unpack("<Q", lora[:8])[0]
    header = (tags + ", " + lora[9 : 8 + length].decode()).encode()
    data = with_header(header) + lora[8 + length :]

    assert put(api, "robot", data).status_code == 201
    assert problem(put(api, "robot", data[:-1]), 422, "INVALID_LORA")


def test_a_file_above_the_limit_is_refused_before_it_is_sent(api, serve_api, data):
    adapters = api.settings.adapters.model_copy(update={"max_bytes": len(data) - 1})
    with serve_api(api.settings.model_copy(update={"adapters": adapters})) as limited:
        detail = problem(put(limited, "robot", data), 413, "BODY_TOO_LARGE")
        assert str(len(data)) in detail

        with connect(limited) as raw:
            raw.sendall(head("robot", 10**15, extra="Expect: 100-continue\r\n"))
            answer = raw.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert stored(api) == []


def test_an_upload_without_a_length_is_refused(api, data):
    answer = put(api, "robot", iter([data]))

    assert "Content-Length" in problem(answer, 411, "LENGTH_REQUIRED")
    assert stored(api) == []


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}],
)
def test_a_body_that_is_not_the_file_itself_is_refused(api, data, headers):
    assert "-T FILE" in problem(put(api, "robot", data, **headers), 415, "UNSUPPORTED_MEDIA_TYPE")
    assert stored(api) == []


def head(name, size, *, extra=""):
    return f"PUT /v1/adapters/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n{extra}\r\n".encode()


def connect(api):
    return socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2])), timeout=10)


@pytest.mark.parametrize("declared", [True, False])
def test_a_connection_that_ends_in_mid_upload_leaves_nothing(api, wait_until, declared):
    data = large_lora(40)
    extra = f"X-Content-SHA256: {sha256(data)}\r\n" if declared else ""
    with connect(api) as raw:
        raw.sendall(head("robot", len(data), extra=extra) + data[: 30 * 2**20])
        wait_until(lambda: stored(api), what="the beginning of a multipart upload")

    wait_until(lambda: not stored(api), what="the end of the upload")
    # The place is free again.
    assert put(api, "robot", data).status_code == 201


@pytest.mark.anyio
@pytest.mark.parametrize("moment", ["receiving", "storing"])
async def test_an_api_that_stops_removes_the_parts_of_an_upload_that_it_cancels(api, monkeypatch, moment):
    begin, write, abort = S3Writer._begin, S3Writer.write, S3Writer.abort
    is_reached = threading.Event()

    def slow_begin(self):
        is_reached.set()
        time.sleep(0.3)
        return begin(self)

    def noted_write(self, piece):
        write(self, piece)
        is_reached.set()

    def slow_abort(self):
        time.sleep(0.3)
        abort(self)

    slowed = ("_begin", slow_begin) if moment == "storing" else ("write", noted_write)
    monkeypatch.setattr(S3Writer, *slowed)
    monkeypatch.setattr(S3Writer, "abort", slow_abort)
    data = large_lora(20)

    async def body():
        yield data[: 9 * 2**20]
        await anyio.sleep_forever()

    app = create_app(api.settings)
    transport = ASGITransport(app)
    async with app.router.lifespan_context(app), AsyncClient(transport=transport, base_url="http://localhost") as http:
        headers = {"Content-Length": str(len(data))}
        upload = asyncio.create_task(http.put("/v1/adapters/robot", content=body(), headers=headers))
        while not is_reached.is_set():
            await anyio.sleep(0.01)
        # As the server does it at the end of its patience.
        upload.cancel()

    assert stored(api) == []


def test_a_fifth_upload_at_once_is_asked_to_come_back(api, data, wait_until):
    waiting = [connect(api) for _ in range(4)]
    for raw in waiting:
        raw.sendall(head("robot", len(data)) + data[:100])
    wait_until(lambda: api.services.upload_slots._free == 0)

    answer = put(api, "robot", data)

    problem(answer, 503, "uploads_busy")
    assert int(answer.headers["Retry-After"]) >= 1
    for raw in waiting:
        raw.close()
    wait_until(lambda: api.services.upload_slots._free == 4)
    assert put(api, "robot", data).status_code == 201


def test_polls_are_answered_while_files_arrive(api, data, wait_until):
    with connect(api) as raw:
        raw.sendall(head("robot", len(data)) + data[:100])
        wait_until(lambda: api.services.upload_slots._free == 3)

        assert api.http.get("/v1/models").status_code == 200


def test_a_store_that_is_away_is_said_and_nothing_is_left_behind(api, serve_api, data):
    storage = api.settings.storage.model_copy(update={"retry_budget_s": 0})
    nowhere = api.settings.s3.model_copy(update={"bucket": "nowhere"})
    with serve_api(api.settings.model_copy(update={"storage": storage, "s3": nowhere})) as away:
        detail = problem(put(away, "robot", data), 503, "storage_unavailable")

    assert "bucket 'nowhere'" in detail


def test_the_body_of_other_routes_is_limited_as_before(api):
    answer = api.http.post("/v1/adapters/robot", content=b"x" * 100_000)
    assert answer.status_code in (405, 413)
    assert api.http.put("/v1/inference", content=b"x" * 100_000).status_code == 413


# Jobs.


def spec_of(api, request_id):
    texts = api.ledger.redis.lrange(keys.specs(request_id), 0, -1)
    return ItemSpec.model_validate_json(join_texts(texts[:2]))


@pytest.mark.parametrize("versioned", [True, False])
def test_a_job_names_an_upload_and_its_bytes_are_fixed_at_accept(api, data, versioned):
    path = uploaded(api, "robot", data)

    request_id = accepted(api, path if versioned else "upload:robot")
    (ref,) = spec_of(api, request_id).adapters

    assert (ref.sha256, ref.pin, ref.size_bytes) == (sha256(data), f"sha256:{sha256(data)}", len(data))
    assert ref.path == (path if versioned else "upload:robot")


def test_the_bytes_of_a_job_are_those_of_its_accept_although_the_name_got_others(api, data, goldens, wait_until):
    other = (goldens / "adapters" / "lokr_full_bf16.safetensors").read_bytes()
    uploaded(api, "robot", data)
    (ref,) = spec_of(api, accepted(api, "upload:robot")).adapters
    sources = Sources(api.settings)
    # Stores keep whole seconds, by which the last upload is found.
    wait_until(lambda: uploaded(api, "robot", other) and sources.uploads.find("robot").sha256 == sha256(other))

    file = sources.open(parse_source(ref.path), pin=sources_pin(ref))

    assert b"".join(file.stream(0)) == data
    assert b"".join(file.stream(len(data) - 9)) == data[-9:]
    assert file.read(3, 11) == data[3:11]
    assert sha256(b"".join(sources.open(parse_source("upload:robot")).stream(0))) == sha256(other)


def sources_pin(ref):
    return Pin.parse(ref.pin)


@pytest.mark.parametrize("versioned", [True, False])
def test_a_worker_of_another_host_gets_the_bytes_of_the_upload(api, data, tmp_path, versioned):
    path = uploaded(api, "robot", data)
    spec = spec_of(api, accepted(api, path if versioned else "upload:robot"))
    sources = api.settings.sources.model_copy(update={"cache_dir": tmp_path / "cache"})
    adapters = api.settings.adapters.model_copy(update={"root": tmp_path / "nothing"})
    worker = api.settings.model_copy(update={"sources": sources, "adapters": adapters})

    with open_adapter_files(worker).open(spec, on_fetch=lambda: None) as files:
        assert files.paths[0].read_bytes() == data


@pytest.mark.parametrize("path", ["upload:none", "upload:none@" + "0" * 64])
def test_a_job_that_names_no_upload_is_refused(api, path):
    detail = problem(submit(api, path), 400, "LORA_NOT_FOUND")

    assert "flux2 adapters push" in detail


def test_an_upload_is_inspected(api, data):
    path = uploaded(api, "robot", data)

    found = api.http.get("/v1/adapters", params={"path": path}).json()

    assert (found["path"], found["sha256"], found["kind"], found["refused"]) == (path, sha256(data), "lora", None)


# The list.


def list_all(api, limit):
    pages, cursor = [], None
    while True:
        page = api.http.get("/v1/adapters", params={"limit": limit, **({"cursor": cursor} if cursor else {})}).json()
        pages.append(page)
        assert len(page["data"]) <= limit
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            return [line for page in pages for line in page["data"]]
        cursor = page["next_cursor"]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 200])
def test_the_list_has_the_files_under_the_root_and_then_the_uploads(api, adapter_root, goldens, limit):
    names = ["dora_bf16", "lora_r4_bf16", "lokr_full_bf16"]
    files = {name: (goldens / "adapters" / f"{name}.safetensors").read_bytes() for name in names}
    for name in names[:2]:
        (adapter_root / f"{name}.safetensors").write_bytes(files[name])
    paths = [uploaded(api, name.replace("_", "-"), files[name]) for name in names]
    paths.append(uploaded(api, "dora-bf16", files["lora_r4_bf16"]))

    lines = list_all(api, limit)

    assert [line["path"] for line in lines[:2]] == ["dora_bf16.safetensors", "lora_r4_bf16.safetensors"]
    assert [line["sha256"] for line in lines[:2]] == [None, None]
    assert sorted(line["path"] for line in lines[2:]) == sorted(paths)
    assert all(line["sha256"] == line["path"].rpartition("@")[2] for line in lines[2:])
    assert all(line["size_bytes"] in map(len, files.values()) and line["modified_at"] > "2020" for line in lines)


@pytest.mark.parametrize("name", ["..", ".", "", "a/../b", "a b", "\x00"])
def test_a_cursor_that_names_no_upload_lists_from_the_first_one(api, data, name):
    path = uploaded(api, "robot", data)

    answer = api.http.get("/v1/adapters", params={"cursor": f"upload:{name}@{'0' * 64}"})

    assert answer.status_code == 200, answer.text
    assert [each["path"] for each in answer.json()["data"]] == [path]


def test_objects_that_are_no_uploads_hide_none(api, data):
    store = api.store
    # Consoles show a folder by an empty object whose name ends in a slash.
    for key in ("uploads/", "uploads/.other/file", "uploads/robot/", "uploads/robot/notes.txt"):
        store._client.put_object(Bucket=store._bucket, Key=f"{store._prefix}{key}", Body=b"")
    path = uploaded(api, "robot", data)

    page = api.http.get("/v1/adapters", params={"limit": 1, "cursor": "upload:"}).json()

    assert [each["path"] for each in page["data"]] == [path]
    accepted(api, "upload:robot")


def test_files_under_the_root_are_listed_although_the_store_is_away(api, serve_api, adapter_root, data):
    (adapter_root / LORA).write_bytes(data)
    storage = api.settings.storage.model_copy(update={"retry_budget_s": 0})
    nowhere = api.settings.s3.model_copy(update={"bucket": "nowhere"})
    with serve_api(api.settings.model_copy(update={"storage": storage, "s3": nowhere})) as away:
        page = away.http.get("/v1/adapters").json()
        rest = away.http.get("/v1/adapters", params={"cursor": page["next_cursor"]})

    assert ([line["path"] for line in page["data"]], page["has_more"]) == ([LORA], True)
    problem(rest, 503, "storage_unavailable")


# Deletion.


def delete(api, name, **params):
    return api.http.delete(f"/v1/adapters/{name}", params=params)


def test_one_version_or_all_versions_of_an_upload_are_deleted(api, data, goldens):
    other = (goldens / "adapters" / "lokr_full_bf16.safetensors").read_bytes()
    first, second = uploaded(api, "robot", data), uploaded(api, "robot", other)
    kept = uploaded(api, "robot-2", data)

    one = delete(api, "robot", sha256=sha256(data))
    uploaded(api, "robot", data)
    both = delete(api, "robot")

    assert (one.status_code, one.json()) == (200, {"deleted": [first]})
    assert sorted(both.json()["deleted"]) == sorted([first, second])
    assert [line["path"] for line in list_all(api, 9)] == [kept]
    problem(delete(api, "robot"), 404, "UPLOAD_NOT_FOUND")
    problem(delete(api, "robot-2", sha256="0" * 64), 404, "UPLOAD_NOT_FOUND")


@pytest.mark.parametrize("state", ["queued", "running"])
@pytest.mark.parametrize("versioned", [True, False])
def test_an_upload_is_kept_while_a_job_needs_it(api, data, finish, state, versioned):
    path = uploaded(api, "robot", data)
    accepted(api, path if versioned else "upload:robot")
    claim = api.ledger.claim_next(["flux2"], slot="test", boot="test", warm="base") if state == "running" else None

    refused = delete(api, "robot")

    assert problem(refused, 409, "UPLOAD_IN_USE").startswith("1 job ")
    assert stored(api) == [f"uploads/robot/{sha256(data)}.safetensors"]
    finish(api, claim or api.ledger.claim_next(["flux2"], slot="test", boot="test", warm="base"))
    assert delete(api, "robot").status_code == 200
    assert stored(api) == []


def test_jobs_of_other_names_and_versions_do_not_keep_an_upload(api, data, goldens, adapter_root):
    other = (goldens / "adapters" / "lokr_full_bf16.safetensors").read_bytes()
    (adapter_root / LORA).write_bytes(data)
    uploaded(api, "robot", data)
    for path in (LORA, uploaded(api, "robot-2", data), uploaded(api, "robot", other)):
        accepted(api, path)
    # A prompt that reads like the entry of an adapter.
    text = f'"path":"upload:robot@{sha256(data)}","sha256":"{sha256(data)}"'
    api.http.post("/v1/inference", json={"model": "flux2", "loras": [], "prompts": [{"prompt": text}]})

    assert problem(delete(api, "robot"), 409, "UPLOAD_IN_USE").startswith("1 job ")
    assert delete(api, "robot", sha256=sha256(data)).status_code == 200


def test_the_jobs_that_need_an_upload_are_counted_with_all_their_items_as_one(api, data):
    path = uploaded(api, "robot", data)
    for _ in range(3):
        answer = submit(api, path, prompts=[{"prompt": "a cat"}, {"prompt": "a dog"}])
        assert answer.status_code == 202

    assert problem(delete(api, "robot"), 409, "UPLOAD_IN_USE").startswith("3 jobs ")


def test_a_job_whose_upload_is_deleted_finds_nothing_and_says_so(api, data):
    path = uploaded(api, "robot", data)
    (ref,) = spec_of(api, accepted(api, path)).adapters
    # As if the deletion had looked for jobs just before the accept.
    for upload in api.services.uploads.versions("robot"):
        api.services.uploads.delete(upload)

    with pytest.raises(AdapterNotFound, match=r"upload:robot.* no such upload is here any more"):
        Sources(api.settings).open(parse_source(ref.path), pin=sources_pin(ref))


# Parts.


async def _pieces(*chunks):
    for chunk in chunks:
        yield chunk


@pytest.mark.anyio
async def test_a_body_that_ends_early_is_incomplete():
    body = UploadBody(_pieces(b"abc", b"de"), size_bytes=6)

    assert await body.take(4) == b"abcd"
    with pytest.raises(UploadIncomplete, match="5 of 6 bytes"):
        await body.take(4)


@pytest.mark.anyio
async def test_a_caller_that_sends_too_slowly_loses_its_place_although_it_is_never_silent(monkeypatch):
    monkeypatch.setattr(upload_body, "_PATIENCE_S", 0.2)

    async def trickle():
        while True:
            await anyio.sleep(0.01)
            yield b"x"

    with anyio.fail_after(10), pytest.raises(UploadIncomplete, match=r"of 1000000 bytes arrived, .* behind a pace"):
        await UploadBody(trickle(), size_bytes=1_000_000).take(1_000_000)


@pytest.mark.anyio
async def test_the_time_that_the_store_takes_is_not_the_callers(monkeypatch):
    monkeypatch.setattr(upload_body, "_PATIENCE_S", 0.1)
    body = UploadBody(_pieces(b"ab", b"cd"), size_bytes=4)

    first = await body.take(2)
    await anyio.sleep(0.15)

    assert first + await body.take(2) == b"abcd"


def test_places_for_uploads_are_given_back():
    slots = UploadSlots(1)
    with slots.take(), pytest.raises(UploadsBusy), slots.take():
        pass
    with slots.take():
        pass
