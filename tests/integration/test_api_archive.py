"""GET /v1/requests/{id}/archive over real HTTP, with the images in a real S3."""

import io
import json
import zipfile

import httpx2
import pytest

from api import archive
from shared.job import AdapterReport

STYLE = AdapterReport(
    path="styles/Ink é.safetensors",
    sha256="0",
    multiplier=1.0,
    kind="lora",
    ranks=(4,),
    layers_touched=1,
    layers_total=2,
)


def submit(api, *seeds, headers=None):
    prompts = [{"prompt": f"cat {seed}", "seed": seed, "width": 64, "height": 64} for seed in seeds]
    answer = api.http.post("/v1/inference", json={"model": "flux2", "loras": [], "prompts": prompts}, headers=headers)
    return answer.json()["request_id"]


def claim(api):
    return api.ledger.claim_next(["flux2"], slot="s", boot="b", warm="base")


def test_the_archive_has_each_finished_image_and_its_parameters(api, finish):
    job = submit(api, 7, 7, 8)
    finish(api, claim(api), b"first")
    finish(api, claim(api), b"second", adapters=(STYLE,))

    answer = api.http.get(f"/v1/requests/{job}/archive")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="flux2-{job[:8]}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as found:
        assert found.testzip() is None
        assert {entry.compress_type for entry in found.infolist()} == {zipfile.ZIP_STORED}
        files = {name: found.read(name) for name in found.namelist()}
    parameters = json.loads(files.pop("parameters.json"))
    assert files == {"0000-seed-7-base.png": b"first", "0001-seed-7-Ink_.png": b"second"}
    assert (parameters["request_id"], parameters["status"]) == (job, "in_progress")
    assert [image["file"] for image in parameters["images"]] == list(files)
    assert [image["prompt"] for image in parameters["images"]] == ["cat 7", "cat 7"]
    assert not parameters["images"][0].keys() & {"url", "url_expires_at", "thumbnail_url"}


def test_a_large_image_is_read_and_sent_in_pieces(api, finish, monkeypatch):
    monkeypatch.setattr(archive, "_PIECE_BYTES", 1000)
    job, data = submit(api, 1), bytes(range(256)) * 40
    finish(api, claim(api), data)
    pieces = []
    read = api.store.read
    monkeypatch.setattr(api.store, "read", lambda key, start, end: pieces.append(end - start) or read(key, start, end))

    with zipfile.ZipFile(io.BytesIO(api.http.get(f"/v1/requests/{job}/archive").content)) as found:
        assert found.read("0000-seed-1-base.png") == data
    assert pieces == [*[1000] * 10, 240]


def test_an_image_that_vanishes_ends_the_connection_so_that_the_file_is_seen_to_be_incomplete(api, finish):
    job = submit(api, 1, 2)
    first, second = claim(api), claim(api)
    finish(api, first)
    finish(api, second)
    api.store.delete_prefix(f"results/{job}/1")

    with pytest.raises(httpx2.RemoteProtocolError, match="incomplete"):
        api.http.get(f"/v1/requests/{job}/archive")

    # Before anything is sent, the error has a body.
    api.store.delete_prefix(f"results/{job}/0")
    answer = api.http.get(f"/v1/requests/{job}/archive")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


def test_a_job_without_images_has_an_archive_with_its_parameters_alone(api):
    job = submit(api, 1)

    with zipfile.ZipFile(io.BytesIO(api.http.get(f"/v1/requests/{job}/archive").content)) as found:
        assert found.namelist() == ["parameters.json"]
        assert json.loads(found.read("parameters.json"))["images"] == []


def test_the_archive_of_another_tenant_does_not_exist(api, make_key, finish):
    job = submit(api, 1, headers=make_key(tenant="acme"))
    finish(api, claim(api))

    assert api.http.get(f"/v1/requests/{job}/archive", headers=make_key(tenant="other")).status_code == 404
    assert api.http.get(f"/v1/requests/{job}/archive", headers=make_key(roles=["submit"])).status_code == 403
    assert api.http.get(f"/v1/requests/{job}/archive", headers=make_key(tenant="acme")).status_code == 200


def test_the_archive_of_some_images_has_no_others(api, finish):
    job = submit(api, 7, 8, 9)
    for data in (b"first", b"second", b"third"):
        finish(api, claim(api), data)

    answer = api.http.get(f"/v1/requests/{job}/archive", params={"index": [0, 2, 9]})

    with zipfile.ZipFile(io.BytesIO(answer.content)) as found:
        assert found.namelist() == ["0000-seed-7-base.png", "0002-seed-9-base.png", "parameters.json"]
        assert [image["index"] for image in json.loads(found.read("parameters.json"))["images"]] == [0, 2]


def test_archives_beyond_the_places_of_a_tenant_are_refused_until_one_is_complete(
    api, finish, make_key, monkeypatch, wait_until
):
    places = api.services.archive_places
    monkeypatch.setattr(places, "_count_of_tenant", 1)
    acme, other = make_key(tenant="acme"), make_key(tenant="other")
    # More than the buffers of a connection hold.
    job, others = submit(api, 1, headers=acme), submit(api, 2, headers=other)
    finish(api, claim(api), bytes(16 * 1024**2))

    with api.http.stream("GET", f"/v1/requests/{job}/archive", headers=acme) as answer:
        assert answer.status_code == 200
        refused = api.http.get(f"/v1/requests/{job}/archive", headers=acme)
        assert api.http.get(f"/v1/requests/{others}/archive", headers=other).status_code == 200
    wait_until(lambda: not places._taken, what="the end of the archive")
    complete = api.http.get(f"/v1/requests/{job}/archive", headers=acme)

    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_archives")
    assert "Retry-After" in refused.headers
    assert complete.status_code == 200
