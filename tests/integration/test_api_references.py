"""Reference images of a request: over real HTTP into real S3 and Redis, and back to a worker as its claim has them."""

import base64
import hashlib
import io
import os
import re
import struct
import zlib

import httpx2
import pytest
from PIL import Image

from shared.job import ReferenceRef, ReferenceReport
from shared.references import reference_key

POOLS = ["flux2", "flux2+references"]


def drawn(color="red", size=(101, 87), kind="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind, **options)
    return file.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def request(*prompts, **fields):
    return {"model": "flux2", "loras": [], "prompts": [{"prompt": "a", **prompt} for prompt in prompts], **fields}


def post(api, body, **headers):
    return api.http.post("/v1/inference", json=body, headers=headers)


def accepted(api, *prompts, **headers):
    answer = post(api, request(*prompts), **headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def refused(api, *prompts, status=422, code="invalid_reference"):
    """Check that a submit is refused and nothing is queued; return the field at fault and the message."""
    answer = post(api, request(*prompts))
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert all(api.ledger.queue_length(pool) == 0 for pool in POOLS)
    [problem] = body["errors"]
    assert problem["message"] == body["detail"]
    return problem["path"], body["detail"]


def claim(api, pools=POOLS):
    return api.ledger.claim_next(pools, slot="test", boot="test", warm="base")


def stored(api):
    return {entry.key for entry in api.store.list_objects("references", limit=1000)}


# The control-image example of the reference API's documentation, with its URL replaced by the form that needs no host.
def test_the_reference_apis_request_with_a_control_image_works_verbatim(api):
    data = drawn()
    body = {
        "model": "flux2",
        "loras": [],
        "prompts": [
            {
                "prompt": "make it look like a watercolor",
                "width": 1024,
                "height": 1024,
                "ctrl_img": f"data:image/png;base64,{base64_of(data)}",
                "seed": 42,
            }
        ],
    }

    answer = post(api, body)

    assert answer.status_code == 202, answer.text
    assert claim(api).spec.references == (ReferenceRef(slot=1, sha256=digest(data)),)
    assert api.store.get(reference_key(digest(data))) == data


def test_each_field_fills_its_slot_and_prompts_may_share_an_image(api):
    red, blue = drawn("red"), drawn("blue", kind="JPEG")

    warnings = accepted(
        api,
        {"ctrl_img": base64_of(red), "ctrl_img_2": base64_of(blue)},
        {"ctrl_img_3": base64_of(red)},
        {"ctrl_img_1": base64_of(blue), "ctrl_img_2": ""},
        {},
    )["warnings"]

    assert [warning for warning in warnings if "ctrl_img" in warning] == [
        "prompts[2].ctrl_img_2 is empty, so it gives no reference image; give one, or leave the field out"
    ]
    first, second, third, fourth = (claim(api).spec.references for _ in range(4))
    assert first == (ReferenceRef(slot=1, sha256=digest(red)), ReferenceRef(slot=2, sha256=digest(blue)))
    assert second == (ReferenceRef(slot=3, sha256=digest(red)),)
    assert third == (ReferenceRef(slot=1, sha256=digest(blue)),)
    assert fourth == ()
    assert stored(api) == {reference_key(digest(red)), reference_key(digest(blue))}


def test_the_image_itself_is_neither_in_redis_nor_in_the_log(api, caplog):
    text = base64_of(drawn())
    caplog.set_level("DEBUG")

    accepted(api, {"ctrl_img": text})
    refused_detail = post(api, request({"ctrl_img": text + "!"})).text

    everything = " ".join(repr(api.ledger.redis.dump(key)) for key in api.ledger.redis.keys("*"))
    for place in (everything, caplog.text, refused_detail):
        assert text[:40] not in place


def test_an_uploaded_image_is_named_by_its_sha256(api):
    data = drawn()
    api.store.put(reference_key(digest(data)), data, content_type="image/png")

    accepted(api, {"ctrl_img_2": f"upload:{digest(data)}"})

    assert claim(api).spec.references == (ReferenceRef(slot=2, sha256=digest(data)),)


def test_workers_of_an_earlier_version_do_not_claim_a_job_with_references(api, slot_report):
    api.ledger.workers.beat("old", slot_report(features="merged,large"))

    answer = accepted(api, {}, {"ctrl_img": base64_of(drawn())})

    assert answer["warnings"] == [
        "the live workers of flux2 are of an earlier version, which renders no reference images; the job waits for one "
        "of this version"
    ]
    assert claim(api, ["flux2", "flux2+merged", "flux2+large"]) is None
    api.ledger.workers.beat("new", slot_report(features="merged,references,large"))
    assert accepted(api, {"ctrl_img": base64_of(drawn())})["warnings"] == []
    assert claim(api).index == 0


def test_a_repeat_with_the_same_key_is_the_same_job_even_if_the_image_is_gone(api):
    data = drawn()
    api.store.put(reference_key(digest(data)), data, content_type="image/png")
    prompt = {"ctrl_img": f"upload:{digest(data)}"}
    first = accepted(api, prompt, **{"Idempotency-Key": "k"})
    api.store.delete_prefix("references")

    again = post(api, request(prompt), **{"Idempotency-Key": "k"})

    assert again.json()["request_id"] == first["request_id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = post(api, request({"ctrl_img": base64_of(data)}), **{"Idempotency-Key": "k"})
    assert other.json()["code"] == "IDEMPOTENCY_KEY_REUSED"


def png_of(width, height, rows=b""):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows or zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in.png", "the text is neither an image in base64 nor an address; give an https://"),
        ("/data/in.png", "the text is neither an image in base64 nor an address"),
        ("/data/in", "the text is neither an image in base64 nor an address"),
        ("\u00e9" * 40, "the text is neither an image in base64 nor an address"),
        ("data:text/plain,hello", "a data URL must hold an image in base64"),
        (base64_of(b"hello" * 9), "is no image, or its beginning is damaged; save it as one of the formats PNG, JPEG"),
        (base64_of(drawn(kind="GIF")), "is a GIF; save it as"),
        (base64_of(drawn()[:-20]), "not a complete image"),
        (base64_of(drawn(size=(63, 200))), "each side of a reference needs at least 64"),
        (base64_of(drawn(size=(1000, 100))), "at most 8 times as long"),
        (base64_of(png_of(60_000, 60_000)), "too many pixels"),
        (base64_of(png_of(8193, 8193)), "67,108,864 at most"),
        (f"upload:{'0' * 64}", f"no image was uploaded as upload:{'0' * 64}"),
        ("upload:name", "an uploaded image is named by its sha256 alone"),
        (f"upload:a.safetensors@{'0' * 64}", "named by its sha256 alone"),
        ("file:///etc/passwd", "is a file address"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_with_its_field(api, text, message):
    sound = base64_of(drawn())

    path, detail = refused(api, {"ctrl_img": sound}, {"ctrl_img_1": sound, "ctrl_img_3": text})

    assert path == "prompts[1].ctrl_img_3"
    assert re.search(message, detail), detail


def test_too_many_different_images_are_refused_before_any_is_stored(redis_url, s3, settings, redis_client, serve_api):
    made = settings(
        redis={"url": redis_url},
        storage=s3.storage.model_dump(),
        s3=s3.s3.model_dump(),
        references={"max_images": 2, "max_bytes": 2000},
    )
    prompts = [{"ctrl_img": base64_of(drawn(color))} for color in ("red", "red", "blue", "green")]
    noise = Image.frombytes("L", (64, 64), os.urandom(4096))
    file = io.BytesIO()
    noise.save(file, "PNG")

    with serve_api(made) as api:
        path, detail = refused(api, *prompts, status=400, code="INVALID_REQUEST")
        assert (path, stored(api)) == ("prompts[3].ctrl_img", set())
        assert "more than 2 different reference images" in detail
        path, detail = refused(api, {"ctrl_img_2": base64_of(file.getvalue())})
        assert (path, stored(api)) == ("prompts[0].ctrl_img_2", set())
        assert "FLUX2_REFERENCES_MAX_BYTES is 2,000" in detail
        accepted(api, *prompts[:3])


def test_warnings_name_what_has_no_effect_and_what_may_surprise(api):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, other = (base64_of(drawn(color, kind="JPEG", exif=exif)) for color in ("red", "blue"))
    plain = base64_of(drawn())

    warnings = accepted(
        api, {"ctrl_img": plain, "ctrl_img_1": plain}, {"ctrl_img": turned, "ctrl_img_1": plain}, {"ctrl_img_2": other}
    )["warnings"]

    assert [warning for warning in warnings if "ctrl_img" in warning] == [
        "prompts[1].ctrl_img_1 has no effect: ctrl_img takes its place; for two images, use ctrl_img and ctrl_img_2",
        "prompts[1].ctrl_img states an EXIF orientation, which AI Toolkit's previews do not apply: it is used as its "
        "pixels are stored; turn it before you submit it",
    ]


def test_the_result_lists_the_references_that_were_used(api, store_image):
    data = drawn()
    request_id = accepted(api, {"ctrl_img_2": base64_of(data)}, {})["request_id"]
    used = ReferenceReport(slot=2, sha256=digest(data), width=96, height=80)
    for references in ((used,), ()):
        claimed = claim(api)
        result = store_image(api, claimed, b"picture").model_copy(update={"references": references})
        assert api.ledger.commit(claimed, result) == "committed"

    images = api.http.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"]

    [[found], none] = [image["references"] for image in images]
    assert httpx2.get(found.pop("url")).content == data
    assert (found, none) == (used.model_dump(), [])


def test_a_store_that_does_not_answer_refuses_a_job_with_images_for_now(redis_url, settings, redis_client, serve_api):
    made = settings(
        redis={"url": redis_url},
        storage={"backend": "s3", "retry_budget_s": 0},
        s3={"endpoint_url": "http://127.0.0.1:9", "timeout_s": 1},
    )
    with serve_api(made) as api:
        answer = post(api, request({"ctrl_img": base64_of(drawn())}))
        text_only = post(api, request({}))

    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert text_only.status_code == 202


def test_a_small_file_with_many_pixels_costs_the_service_no_memory(redis_url, s3, settings, redis_client, serve_api):
    def rows(side):
        # 67 megapixels in 200 kB, compressed row by row.
        pack = zlib.compressobj(9)
        return b"".join([*(pack.compress(bytes(1 + 3 * side)) for _ in range(side)), pack.flush()])

    data = png_of(8192, 8192, rows(8192))
    made = settings(redis={"url": redis_url}, storage=s3.storage.model_dump(), s3=s3.s3.model_dump())

    with serve_api(made) as api:
        accepted(api, {"ctrl_img": base64_of(drawn())})
        peak_bytes()
        before = peak_bytes()
        accepted(api, {"ctrl_img": base64_of(data)})
        grown = peak_bytes() - before

    assert len(data) < 250_000
    # Decoded, it takes 268 MB.
    assert grown < 60_000_000


def peak_bytes():
    """Return the most memory that this process has used since the last call."""
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")
    return int(fields["VmHWM"].split()[0]) * 1024
