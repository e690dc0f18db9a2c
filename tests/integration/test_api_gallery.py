"""GET /v1/images over real HTTP: every finished image, page by page, with bounded work for each page."""

from datetime import UTC, datetime

import pytest

from shared.job import AdapterReport, ItemError, ItemSpec
from shared.ledger import Ledger, image_listing
from shared.settings import QueueSettings

STYLE = AdapterReport(path="styles/Ink.safetensors", sha256="0", multiplier=1.0, kind="lora", ranks=(4,),
                      layers_touched=1, layers_total=2)  # fmt: skip


def spec(index, **fields):
    values = {
        "model": "flux2",
        "prompt": f"cat {index}",
        "neg": "",
        "width": 64,
        "height": 64,
        "requested_width": 64,
        "requested_height": 64,
        "seed": index,
        "num_inference_steps": 2,
        "guidance_scale": 4.0,
        "adapters": (),
        "output_format": "png",
    }
    return ItemSpec.model_validate({**values, **fields})


@pytest.fixture
def add(api, make_result):
    """Store a job whose items end as said, and return the numbers of its finished images."""

    def add(job_id, ends, *, prompt="cat {}", adapters=(), **fields):
        specs = [spec(index, prompt=prompt.format(index)) for index in range(len(ends))]
        api.ledger.accept(job_id, specs, record={"warnings": []}, **fields)
        claims = [api.ledger.claim_next(["flux2"], slot="s", boot="b", warm="base") for _ in ends]
        # A job's items rarely end in their order.
        for claim, end in reversed(list(zip(claims, ends, strict=True))):
            if end == "succeeded":
                key = f"results/{job_id}/{claim.index}/1/image.png"
                api.ledger.commit(claim, make_result(key).model_copy(update={"adapters": tuple(adapters)}))
            elif end == "failed":
                api.ledger.commit(claim, ItemError(code="x", message="it broke", retryable=False))
        return [(job_id, index) for index, end in enumerate(ends) if end == "succeeded"]

    return add


def get(api, *, headers=None, **query):
    answer = api.http.get("/v1/images", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def walk(api, **query):
    """Return the images of all pages, as (job, index)."""
    found, cursor = [], {}
    while True:
        page = get(api, **query, **cursor)
        found += [(image["request_id"], image["index"]) for image in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            return found
        cursor = {"cursor": page["next_cursor"]}


def test_an_image_is_listed_with_its_parameters_its_job_and_a_url(api, add):
    add("job", ["succeeded"], adapters=[STYLE])

    page = get(api)

    (image,) = page["data"]
    result = api.http.get("/v1/requests/job/result").json()
    (same,) = result["outputs"]["images"]
    signed = {"url", "url_expires_at"}
    assert {name: value for name, value in image.items() if name in same.keys() - signed} == {
        name: value for name, value in same.items() if name not in signed
    }
    assert image["url"].split("?")[0] == same["url"].split("?")[0]
    of_job = {"request_id": "job", "model": "flux2", "tenant": "default"}
    assert {name: image[name] for name in of_job} == of_job
    assert (image["created_at"], image["finished_at"]) == (result["created_at"], result["finished_at"])
    assert (page["has_more"], page["next_cursor"]) == (False, None)


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
def test_the_pages_have_each_finished_image_once_the_newest_job_first(api, add, limit):
    oldest = add("oldest", ["succeeded"] * 4)
    add("failed", ["failed", "failed"])
    mixed = add("mixed", ["succeeded", "failed", "running", "succeeded"])
    whole = add("whole", ["succeeded"] * 2, compact=False)
    newest = add("newest", ["succeeded"])

    assert walk(api, limit=limit) == [*newest, *whole, *mixed, *oldest]
    assert get(api, limit=2, request_id="mixed")["data"][1]["finished_at"] is None


@pytest.mark.parametrize("limit", [1, 2, 50])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"prompt": "DOG 1"}, [("dogs", 1)]),
        ({"adapter": "ink"}, [("cats", 0), ("cats", 1), ("cats", 2)]),
        ({"adapter": "ink", "seed": 2}, [("cats", 2)]),
        ({"seed": 1}, [("dogs", 1), ("cats", 1)]),
        ({"request_id": "cats"}, [("cats", 0), ("cats", 1), ("cats", 2)]),
        ({"request_id": "cats", "prompt": "dog"}, []),
        ({"request_id": "nothing"}, []),
        ({"model": "flux2_klein_4b"}, []),
        ({"model": "flux2", "prompt": "dog 0"}, [("dogs", 0)]),
    ],
)
def test_a_filter_finds_all_images_that_match_it(api, add, monkeypatch, query, expected, limit):
    # A page looks at four images, so that some pages are short.
    monkeypatch.setattr(image_listing, "_ITEMS_PER_STEP", 2)
    monkeypatch.setattr(image_listing, "_STEPS_PER_PAGE", 2)
    add("cats", ["succeeded"] * 3, adapters=[STYLE])
    add("dogs", ["succeeded", "succeeded"], prompt="Dog {}")

    assert walk(api, limit=limit, **query) == expected


def test_images_are_found_by_the_time_at_which_their_job_was_accepted(api, redis_client, add, clock, monkeypatch):
    made = {}
    for name in ("first", "second", "third"):
        # Two hours apart: the listing allows for a clock that went back by one.
        monkeypatch.setattr(api.ledger._session, "_clock_ms", clock)
        add(name, ["succeeded"])
        made[name] = datetime.fromtimestamp(clock.ms / 1000, UTC).isoformat()
        clock.advance(7200)

    assert walk(api, since=made["second"]) == [("third", 0), ("second", 0)]
    assert walk(api, until=made["second"]) == [("first", 0)]
    assert walk(api, since=made["second"], until=made["third"]) == [("second", 0)]
    assert walk(api, since=made["second"], request_id="first") == []
    assert walk(api, until=made["second"], request_id="first") == [("first", 0)]


def test_a_tenant_sees_its_own_images_and_an_admin_those_of_all(api, add, make_key):
    acme, admin = make_key(tenant="acme"), make_key(tenant="ops", roles=["admin"])
    own, foreign = add("own", ["succeeded"], tenant="acme"), add("foreign", ["succeeded"], tenant="other")

    assert walk(api, headers=acme) == own
    assert walk(api, headers=acme, request_id="foreign") == []
    assert walk(api, headers=acme, tenant="acme") == own
    assert api.http.get("/v1/images", params={"tenant": "other"}, headers=acme).status_code == 403
    assert walk(api, headers=admin) == [*foreign, *own]
    assert walk(api, headers=admin, tenant="other") == foreign
    assert get(api, headers=admin)["data"][0]["tenant"] == "other"
    assert api.http.get("/v1/images", headers=make_key(roles=["submit"])).status_code == 403


def test_a_page_looks_at_a_bounded_number_of_images(redis_client, make_result, monkeypatch):
    monkeypatch.setattr(image_listing, "_ITEMS_PER_STEP", 25)
    ledger = Ledger(redis_client, QueueSettings())
    for number in range(3):
        ledger.accept(f"job-{number}", [spec(index) for index in range(50)], record={})
    for _ in range(150):
        claim = ledger.claim_next(["flux2"], slot="s", boot="b", warm="base")
        ledger.commit(claim, make_result())
    redis_client.config_resetstat()

    page = ledger.images.page(image_listing.ImageFilter(prompt="dog"), cursor=None, limit=50)

    calls = {name: stats["calls"] for name, stats in redis_client.info("commandstats").items()}
    assert page.images == ()
    # 25 images in each of the four steps, which also read their job and up to three lines of the listing of jobs.
    assert 100 <= calls["cmdstat_hmget"] <= 100 + 4 * 4
    assert calls["cmdstat_lrange"] == 4 * 3
    last = ledger.images.page(image_listing.ImageFilter(prompt="cat 49"), cursor=page.next_cursor, limit=50)
    assert [(image.job.job_id, image.index) for image in last.images] == [("job-0", 49)]
    assert last.next_cursor is None


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": "12"},
        {"cursor": "x.1"},
        {"since": "1700000000"},
        {"since": "2026-01-01T00:00:00"},
        {"until": "yesterday"},
        {"seed": -1},
        {"limit": 201},
        {"tenant": "../x"},
    ],
)
def test_a_parameter_without_sense_is_refused_by_its_name(api, query):
    answer = api.http.get("/v1/images", params=query)

    assert answer.status_code == 422
    (name,) = query
    assert name in str(answer.json()["errors"])


def test_an_unknown_model_is_refused(api):
    assert api.http.get("/v1/images", params={"model": "sdxl"}).status_code == 400
