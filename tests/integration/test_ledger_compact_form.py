"""Jobs in the compact form: how much they hold, when they are written, and what remains of items that have ended."""

import inspect
import sys

import pytest

from shared.job import AdapterRef, AdapterReport, ItemError, ItemResult, ItemSpec, PipelineReport, Progress, State
from shared.ledger import Ledger, keys
from shared.ledger.compact_form import UPGRADE_S
from shared.ledger.spec_parts import join_texts, split_specs
from shared.settings import QueueSettings

JOB = "2f1a3c58-7b2c-4c3e-9f52-8d1e5a9b7c60"
SHA256 = "0123456789abcdef" * 4
ITEMS = 100
LONG = "x" * 5_000
BROKEN = ItemError(code="run_failed", message="it broke", retryable=True)
# The fields by which the scripts of the earlier version requeue, end and count items.
READ_BY_EARLIER_SCRIPTS = {
    "job", "index", "pool", "tenant", "lane", "seq", "state", "fence", "attempt", "commits", "accepted_ms", "queued_ms",
}  # fmt: skip


@pytest.fixture
def ledger(redis_client, clock):
    return Ledger(redis_client, QueueSettings(), clock_ms=clock)


def spec(number: int = 0, **changes) -> ItemSpec:
    ref = AdapterRef(path="my_lora/my_lora.safetensors", sha256=SHA256, size_bytes=344_000_000, multiplier=0.1)
    fields = {
        "model": "flux2",
        "prompt": f'sks "number" {number}, {"word " * 16}',
        "neg": "",
        "width": 1024,
        "height": 1024,
        "requested_width": 1024,
        "requested_height": 1024,
        "seed": 2**63 - 1 - number,
        "num_inference_steps": 25,
        "guidance_scale": 4.0,
        "adapters": (ref,),
        "output_format": "png",
    }
    return ItemSpec(**{**fields, **changes})


def result(claim) -> ItemResult:
    return ItemResult(
        key=f"results/{claim.job_id}/{claim.index}/{claim.fence}/image.png",
        format="png",
        content_type="image/png",
        width=1024,
        height=1024,
        sha256=SHA256,
        size_bytes=1_482_133 + claim.index,
        timings=dict.fromkeys(("encode_prompt", "adapter", "denoise", "decode", "encode_image", "upload"), 1.2345),
        adapters=(
            AdapterReport(
                path="my_lora/my_lora.safetensors",
                sha256=SHA256,
                multiplier=0.1,
                kind="lora",
                ranks=(16,),
                scale_range=(0.25, 1 / 3),
                scale_sources=("lora_adapter_metadata", "none"),
                layers_touched=128,
                layers_total=160,
            ),
        ),
        pipeline=PipelineReport(
            engine="exact",
            precision="bf16",
            base_revision=SHA256[:40],
            device="NVIDIA H200",
            adapter_mode="merged",
            change="none" if claim.index else "merged",
            versions={"torch": "2.9.1", "diffusers": "0.36.0", "transformers": "4.57.3"},
        ),
    )


def claim(ledger, *, warm="base"):
    claimed = ledger.claim_next(["flux2"], slot="host/cuda:0", boot=SHA256[:32], warm=warm)
    ledger.renew(claimed, Progress(stage="denoise", step=3, steps=25))
    return claimed


def size(client) -> int:
    """Return the memory of all keys, with the entries of Redis' own table of them, in bytes."""
    return sum(client.memory_usage(key, samples=0) for key in client.scan_iter("*"))


def test_the_texts_of_an_item_give_its_spec():
    specs = [
        spec(number, neg="\N{SNOWMAN}", guidance_scale=guidance) for number, guidance in enumerate((0.1, 1e-07, 0.1))
    ]
    specs.append(spec(3, sigmas=(1.0, 0.1 + 0.2), num_inference_steps=2))

    shared, *own = split_specs(specs)

    assert [ItemSpec.model_validate_json(join_texts([shared, text])) for text in own] == specs
    assert not any("\n" in text for text in own)


def test_values_that_differ_only_by_the_sign_of_zero_are_not_shared():
    specs = [spec(guidance_scale=0.0), spec(guidance_scale=-0.0)]

    assert split_specs(specs)[1:] == ['{"guidance_scale":0.0}', '{"guidance_scale":-0.0}']


def test_an_item_of_a_plain_batch_takes_less_than_1500_bytes_in_every_state(ledger, redis_client):
    ledger.accept(JOB, [spec(number) for number in range(ITEMS)], record={"warnings": []})
    queued = size(redis_client)
    claims = [claim(ledger) for _ in range(ITEMS)]
    running = size(redis_client)
    encodings = {redis_client.object("encoding", keys.item(claimed.item_id)) for claimed in claims}
    for claimed in claims:
        ledger.commit(claimed, result(claimed))
    succeeded = size(redis_client)

    assert max(queued, running, succeeded) / ITEMS < 1500
    # Not a hash table, which takes a kilobyte more.
    assert encodings <= {"ziplist", "listpack"}
    assert [item.result for item in ledger.job(JOB).items] == [result(claimed) for claimed in claims]


def test_canceling_a_job_frees_the_memory_of_its_texts(ledger, redis_client):
    ledger.accept(JOB, [spec(n, prompt=f"{n} {LONG}", neg=f"{n} {LONG}") for n in range(ITEMS)], record={})
    queued = size(redis_client)

    ledger.cancel(JOB)

    assert queued > ITEMS * 10_000
    assert size(redis_client) < ITEMS * 500
    assert {(item.state, item.steps, item.spec) for item in ledger.job(JOB).items} == {(State.CANCELED, 25, None)}


def test_canceling_a_job_in_the_whole_form_frees_the_memory_of_its_texts_too(ledger, redis_client):
    ledger.accept(JOB, [spec(n, prompt=f"{n} {LONG}") for n in range(ITEMS)], record={}, compact=False)

    ledger.cancel(JOB)

    assert size(redis_client) < ITEMS * 2_000
    assert {(item.state, item.steps, item.spec) for item in ledger.job(JOB).items} == {(State.CANCELED, 25, None)}


def test_steps_that_differ_stay_known_when_items_are_canceled(ledger):
    prompt = '"num_inference_steps":99,"'
    ledger.accept(JOB, [spec(num_inference_steps=steps, prompt=prompt) for steps in (10, 20)], record={})

    ledger.cancel(JOB)

    assert [item.steps for item in ledger.job(JOB).items] == [10, 20]


def test_a_canceled_item_of_a_version_with_other_steps_keeps_nothing(ledger, redis_client):
    ledger.accept(JOB, [spec(0), spec(1)], record={})
    redis_client.hset(keys.item(f"{JOB}:0"), "spec", '{"num_inference_steps":null}')
    redis_client.hset(keys.item(f"{JOB}:1"), "spec", "another form")

    ledger.cancel(JOB)

    assert [(item.state, item.steps) for item in ledger.job(JOB).items] == [(State.CANCELED, None)] * 2


def test_an_ended_item_keeps_only_what_is_shown_of_it(ledger, redis_client):
    ledger.accept(JOB, [spec(n, width=16 * n + 512) for n in range(3)], record={})
    done, failed = claim(ledger), claim(ledger)
    ledger.commit(done, result(done))
    ledger.commit(failed, BROKEN)

    assert [text.splitlines()[1:] for text in redis_client.lrange(keys.specs(JOB), 1, -1)] == [
        [],
        [],
        ['{"width":544}'],
    ]
    shown = {"index", "state", "fence", "attempt", "commits", "queued_ms", "started_ms", "finished_ms", "slot", "why"}
    assert set(redis_client.hgetall(keys.item(done.item_id))) == shown
    assert [item.spec.seed for item in ledger.job(JOB).items] == [spec(n).seed for n in range(3)]
    last = claim(ledger)
    assert last.spec == spec(2, width=544)
    ledger.commit(last, result(last))
    assert not any('"width"' in text or SHA256 in text for text in redis_client.lrange(keys.specs(JOB), 0, -1))
    assert [item.error for item in ledger.job(JOB).items] == [None, BROKEN, None]


def test_a_queued_item_keeps_the_fields_that_scripts_of_the_earlier_version_read(ledger, redis_client):
    ledger.accept(JOB, [spec()], record={}, tenant="team-a")

    stored = redis_client.hgetall(keys.item(f"{JOB}:0"))

    # They do not know the shape, by which the time of the item is estimated.
    assert set(stored) == READ_BY_EARLIER_SCRIPTS | {"shape"}
    # They find the share in the lane's name.
    assert stored["lane"].startswith("5|team-a|")


def test_a_worker_prefers_its_merged_adapters_in_both_forms(ledger):
    for form in (True, False):
        ledger.accept(f"base-{form}", [spec(adapters=())], record={}, compact=form)
        ledger.accept(f"adapter-{form}", [spec()], record={}, compact=form)

    claimed = [claim(ledger, warm=spec().adapter_key).job_id for _ in range(4)]

    assert claimed == ["adapter-True", "adapter-False", "base-True", "base-False"]


def test_adapters_that_another_worker_has_merged_are_left_to_it_in_both_forms(ledger, slot_report):
    ledger.workers.beat("host/other", slot_report(warm=spec().adapter_key))
    for form in (True, False):
        ledger.accept(f"adapter-{form}", [spec()], record={}, compact=form)
    ledger.accept("base", [spec(adapters=())], record={})

    assert claim(ledger, warm="another").job_id == "base"


def test_the_sweep_forgets_every_key_of_a_job(ledger, redis_client, clock):
    ledger.accept("first", [spec()], record={})
    before = {name for name in redis_client.scan_iter("*") if "first" not in name}
    ledger.cancel("first")
    ledger.accept(JOB, [spec(0), spec(1)], record={})
    done = claim(ledger)
    ledger.commit(done, result(done))
    ledger.cancel(JOB)

    clock.ms += 8 * 86_400_000
    ledger.forget_ended()

    assert not [name for name in redis_client.scan_iter("*") if JOB in name or "first" in name]
    assert before


def test_jobs_are_stored_whole_for_an_hour_if_the_redis_holds_jobs_of_an_earlier_version(ledger, redis_client, clock):
    redis_client.set(keys.SEQUENCE, 7)

    def is_compact(job_id):
        # Another process of this version.
        Ledger(redis_client, QueueSettings(), clock_ms=clock).accept(job_id, [spec()], record={})
        return "spec" not in redis_client.hgetall(keys.item(f"{job_id}:0"))

    first = is_compact("first")
    clock.ms += int(UPGRADE_S * 1000) - 1
    before = is_compact("before")
    clock.ms += 1

    assert [first, before, is_compact("after")] == [False, False, True]
    assert redis_client.get(keys.COMPACT_FROM) == str(clock.ms)


def test_a_result_that_a_worker_of_the_earlier_version_stored_is_read(ledger, redis_client):
    ledger.accept(JOB, [spec()], record={})
    done = claim(ledger)
    ledger.commit(done, result(done))
    redis_client.delete(keys.results(JOB), keys.result_parts(JOB))
    redis_client.hset(keys.item(done.item_id), "result", result(done).model_dump_json())

    assert ledger.job(JOB).items[0].result == result(done)


def test_a_parameter_of_a_newer_version_is_ignored_in_the_view_and_refused_by_a_worker(ledger, redis_client):
    ledger.accept(JOB, [spec()], record={})
    redis_client.lset(keys.specs(JOB), 0, redis_client.lindex(keys.specs(JOB), 0) + '\n{"future":1}')

    assert ledger.claim_next(["flux2"], slot="s", boot="b", warm="base") is None
    [item] = ledger.job(JOB).items

    assert item.error.code == "unreadable_spec"
    assert item.spec.seed == spec().seed


def test_a_worker_ends_any_number_of_items_that_it_cannot_read_in_one_claim(ledger, redis_client):
    ledger.accept(JOB, [spec()] * 150, record={})
    for index in range(150):
        # As in the whole form of a newer version.
        redis_client.hset(keys.item(f"{JOB}:{index}"), "spec", '{"new": 1}')

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 120)
    try:
        claimed = ledger.claim_next(["flux2"], slot="s", boot="b", warm="base")
    finally:
        sys.setrecursionlimit(limit)

    assert claimed is None
    assert ledger.job(JOB).state is State.FAILED
