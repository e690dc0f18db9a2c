"""The limits of a key: what it never allows, and what is counted in the step that stores a job."""

import threading

import pytest

from shared.errors import KeyForbids, KeyLimitReached
from shared.job import ItemSpec
from shared.ledger import Ledger
from shared.ledger.acceptance import Submission
from shared.ledger.key_use import KeyUse
from shared.settings import QueueSettings

LORA = "lora_r4_bf16.safetensors"


def request(count=1, *, size=64, steps=25, sigmas=None, **fields):
    schedule = {"sigmas": sigmas} if sigmas else {"sample_steps": steps}
    prompt = {"prompt": "a cat", "width": size, "height": size, **schedule}
    return {"model": "flux2", "prompts": [prompt] * count, "loras": [], **fields}


def post(api, key, *arguments, **fields):
    return api.http.post("/v1/inference", json=request(*arguments, **fields), headers=key)


def outcome(answer):
    return (answer.status_code, answer.json().get("code"))


@pytest.mark.parametrize(
    ("limits", "allowed", "refused", "field"),
    [
        ({"max_steps": 10}, {"steps": 10}, {"steps": 11}, "prompts[0].sample_steps"),
        ({"max_steps": 2}, {"sigmas": [1, 0.5]}, {"sigmas": [1, 0.5, 0.25]}, "prompts[0].sigmas"),
        ({"max_megapixels": 0.0041}, {"size": 64}, {"size": 80}, "prompts[0].width"),
        ({"models": ("flux2",)}, {}, {"model": "flux2_klein_4b"}, "model"),
        ({"engines": ("exact",)}, {}, {"engine": "fast"}, "engine"),
    ],
)
def test_what_a_key_never_allows_is_refused_for_good(api, make_key, limits, allowed, refused, field):
    key = make_key(**limits)

    assert post(api, key, **allowed).status_code == 202
    answer = post(api, key, **refused)

    assert outcome(answer) == (403, "KEY_LIMIT")
    assert answer.json()["errors"][0]["path"] == field


def test_the_adapters_of_a_key_are_patterns_of_their_whole_names(api, make_key, adapter_root, goldens):
    for folder in ("team", "secret"):
        (adapter_root / folder).mkdir()
        (adapter_root / folder / "a.safetensors").write_bytes((goldens / "adapters" / LORA).read_bytes())
    key = make_key(adapters=("team/*", "hf://acme/*"))

    def code(path):
        answer = post(api, key, loras=[{"path": path}])
        return answer.json().get("code", answer.status_code)

    whole = str(adapter_root / "team/a.safetensors")
    for path in ("team/a.safetensors", "./team//a.safetensors", whole, f"/{whole}"):
        assert code(path) == 202, path
    refused = [
        "secret/a.safetensors",
        "secret/none.safetensors",
        "team/../secret/a.safetensors",
        str(adapter_root / "secret/a.safetensors"),
        "hf://other/repo/a.safetensors",
        "https://huggingface.co/other/repo/blob/main/a.safetensors",
        "s3://flux2/team/a.safetensors",
        "upload:team",
    ]
    for path in refused:
        assert code(path) in ("KEY_LIMIT", "INVALID_LORA"), path
        inspected = api.http.get("/v1/adapters", params={"path": path}, headers=key)
        assert inspected.json()["code"] in ("KEY_LIMIT", "INVALID_LORA"), path
    files = api.http.get("/v1/adapters", headers=key).json()["data"]
    assert [file["path"] for file in files] == ["team/a.safetensors"]


def test_the_images_of_a_day_are_counted_and_a_refused_or_repeated_job_counts_nothing(api, make_key):
    key = make_key(items_per_day=5)
    again = {**key, "Idempotency-Key": "k"}

    assert post(api, again, 3).status_code == 202
    assert post(api, again, 3).headers["idempotency-replayed"] == "true"
    assert post(api, key, 3, steps=0).status_code == 422
    full = post(api, key, 3)
    assert outcome(full) == (429, "key_limit_reached")
    assert 1 <= int(full.headers["retry-after"]) <= 86_400
    assert outcome(post(api, key, 6)) == (403, "KEY_LIMIT")
    assert post(api, key, 2).status_code == 202
    assert outcome(post(api, key, 1)) == (429, "key_limit_reached")
    # Another key of the same tenant has its own count.
    assert post(api, make_key(items_per_day=5), 5).status_code == 202


def test_megapixel_steps_of_a_day_are_counted(api, make_key):
    # 64 x 64 pixels at 25 steps are 0.1024 megapixel-steps.
    key = make_key(megapixel_steps_per_day=0.3)

    assert [post(api, key).status_code for _ in range(3)] == [202, 202, 429]
    assert "0.2048" in post(api, key).json()["detail"]


def test_the_images_that_wait_are_limited_and_a_started_or_canceled_one_makes_room(api, make_key):
    key = make_key(queued_items=2)
    jobs = [post(api, key).json()["request_id"] for _ in range(2)]
    full = post(api, key)
    assert outcome(full) == (429, "key_limit_reached")
    assert outcome(post(api, key, 3)) == (403, "KEY_LIMIT")

    api.http.post(f"/v1/requests/{jobs[0]}/cancel", headers=key)
    assert post(api, key).status_code == 202
    assert outcome(post(api, key)) == (429, "key_limit_reached")
    assert api.ledger.claim_next(["flux2"], slot="s", boot="b", warm="base") is not None
    assert post(api, key).status_code == 202
    assert outcome(post(api, key)) == (429, "key_limit_reached")


# The ledger by itself.


def spec():
    return ItemSpec(
        model="flux2", prompt="", neg="", width=64, height=64, requested_width=64, requested_height=64, seed=1,
        num_inference_steps=1, guidance_scale=4, adapters=(), output_format="png",
    )  # fmt: skip


def job(name, items=1, **fields):
    return Submission(job_id=name, items=[spec()] * items, record={}, **fields)


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(cap=10_000), clock_ms=clock)


def test_a_new_day_begins_with_nothing(ledger, clock):
    use = KeyUse("k", items_per_day=2)
    ledger.accept_all([job("a", 2)], key=use)
    with pytest.raises(KeyLimitReached) as refused:
        ledger.accept_all([job("b")], key=use)

    clock.advance(refused.value.retry_after_s)

    ledger.accept_all([job("b", 2)], key=use)
    days = ledger.redis.keys("flux2:key_day:k:*")
    assert len(days) == 2
    assert all(0 < ledger.redis.ttl(day) <= 2 * 86_400 for day in days)


def test_an_accept_that_is_sent_twice_counts_once(ledger):
    use = KeyUse("k", items_per_day=3, queued_items=3)

    for _ in range(5):
        ledger.accept_all([job("a", 2)], key=use)

    ledger.accept_all([job("b")], key=use)
    with pytest.raises(KeyLimitReached):
        ledger.accept_all([job("c")], key=use)


def test_the_jobs_of_one_call_are_counted_together(ledger):
    with pytest.raises(KeyForbids, match="4 were asked for at once"):
        ledger.accept_all([job("a", 2), job("b", 2)], key=KeyUse("k", items_per_day=3))

    assert ledger.job("a") is None


def test_many_callers_with_one_key_get_no_more_than_its_limit(redis_url, redis_client):
    use = KeyUse("k", items_per_day=20, queued_items=20)
    accepted = []

    def submit_all(caller):
        own = Ledger.connect(redis_url, QueueSettings(), timeout_s=5)
        for number in range(10):
            try:
                accepted.extend(own.accept_all([job(f"{caller}-{number}")], key=use))
            except KeyLimitReached:
                continue

    threads = [threading.Thread(target=submit_all, args=(caller,)) for caller in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(accepted) == 20


def test_a_key_far_below_its_limit_costs_no_count_of_its_jobs(ledger):
    use = KeyUse("k", queued_items=1000)
    for number in range(200):
        ledger.accept_all([job(f"job-{number}")], key=use)
    ledger.redis.config_resetstat()

    ledger.accept_all([job("one more")], key=use)

    assert "cmdstat_smembers" not in ledger.redis.info("commandstats")


def test_items_that_return_to_the_queue_count_against_the_limit(ledger, clock):
    use = KeyUse("k", queued_items=5)
    ledger.accept_all([job("a", 3)], key=use)
    claims = [ledger.claim_next(["flux2"], slot=slot, boot="b", warm="base") for slot in ("gpu-0", "gpu-1", "gpu-2")]
    # The last of these counts the queue, while three items run.
    for name in ("b", "c", "d"):
        clock.advance(1)
        ledger.accept_all([job(name)], key=use)

    for claim in claims:
        ledger.release(claim, "drain")
    clock.advance(1)

    with pytest.raises(KeyLimitReached, match="it has 6"):
        ledger.accept_all([job("e")], key=use)


def test_a_full_key_is_not_counted_again_at_once(ledger, clock):
    use = KeyUse("k", queued_items=100)
    for number in range(100):
        ledger.accept_all([job(f"job-{number}")], key=use)
    ledger.redis.config_resetstat()

    for _ in range(20):
        with pytest.raises(KeyLimitReached):
            ledger.accept_all([job("late")], key=use)
    counted = ledger.redis.info("commandstats")["cmdstat_smembers"]["calls"]
    ledger.cancel("job-0")
    clock.advance(0.1)
    ledger.accept_all([job("late")], key=use)

    assert counted == 1
