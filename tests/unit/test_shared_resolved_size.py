"""The texts of a call are bounded in bytes, with their trigger words filled in, before they exist."""

import tracemalloc

import pytest

from shared.errors import InvalidRequest
from shared.request import InferenceRequest
from shared.resolved_size import check_resolved_size


def request(*prompts, **fields):
    return InferenceRequest(**{"model": "flux2", "loras": [], "prompts": list(prompts), **fields})


def test_the_bound_counts_utf_8_bytes_with_each_prompts_own_trigger_word():
    # 2 + 2 * 3 bytes, and 1 + 4 bytes.
    body = request(
        {"prompt": "[trigger]: [trigger]"},
        {"prompt": "a[trigger]", "trigger_word": "\N{CAT FACE}"},
        trigger_word="\N{SNOWMAN}",
    )

    check_resolved_size([body], max_bytes=13)
    with pytest.raises(InvalidRequest, match=r"the prompts have 13 bytes .* use at most 12 in one call") as refused:
        check_resolved_size([body], max_bytes=12)
    assert refused.value.field == "prompts[1].prompt"


def test_a_negative_prompt_counts_only_for_models_that_use_it():
    prompt = {"prompt": "a", "neg": "ugly"}

    check_resolved_size([request(prompt)], max_bytes=1)
    with pytest.raises(InvalidRequest, match="5 bytes"):
        check_resolved_size([request(prompt, model="flux2_klein_4b")], max_bytes=4)


def test_the_requests_of_one_call_are_counted_together():
    with pytest.raises(InvalidRequest, match="4 bytes") as refused:
        check_resolved_size([request({"prompt": "ab"}), request({"prompt": "cd"})], max_bytes=3, field="config")
    assert refused.value.field == "config"


def test_texts_are_counted_without_being_built():
    body = request(*[{"prompt": "[trigger]"}] * 1000, trigger_word="\N{CAT FACE}" * 9_990)
    tracemalloc.start()

    with pytest.raises(InvalidRequest, match="39960000 bytes"):
        check_resolved_size([body], max_bytes=4 * 1024**2)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
