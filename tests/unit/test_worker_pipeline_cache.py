"""What is merged, what changes it, and what comes back when a change fails."""

import pytest
import torch

from worker.lora import merge
from worker.pipeline.cache import WarmPipeline


@pytest.fixture
def adapters(goldens, adapter_ref):
    """Pair adapter files with references: `adapters(("lora_r4_bf16", 1.0), ...)`."""

    def make(*wanted):
        paths = [goldens / f"adapters/{name}.safetensors" for name, _ in wanted]
        return [(adapter_ref(path, multiplier), path) for path, (_, multiplier) in zip(paths, wanted, strict=True)]

    return make


@pytest.fixture
def warm(components):
    return WarmPipeline(components("bf16"))


def weights(warm):
    return {name: value.clone() for name, value in warm.components.transformer.state_dict().items()}


def equal(left, right):
    return all(torch.equal(left[name].view(torch.int16), right[name].view(torch.int16)) for name in left)


def test_each_change_is_named(warm, adapters):
    one, other = adapters(("lora_r4_bf16", 1.0)), adapters(("lora_subset_bf16", 1.0))

    changes = [warm.use(wanted)[0] for wanted in ([], one, one, other, [], [])]

    assert changes == ["none", "merged", "none", "swapped", "restored", "none"]


def test_another_multiplier_is_another_key(warm, adapters):
    warm.use(adapters(("lora_r4_bf16", 1.0)))

    change, (report,) = warm.use(adapters(("lora_r4_bf16", 0.5)))

    assert change == "swapped"
    assert report.multiplier == 0.5


def test_base_weights_come_back_to_the_bit_after_many_swaps(warm, adapters):
    base = weights(warm)
    for multiplier in (1.0, -1.0, 0.3):
        for name in ("lora_r4_bf16", "lora_alllinear_bf16", "lora_subset_bf16"):
            warm.use(adapters((name, multiplier)))

    warm.use([])

    assert equal(weights(warm), base)


def test_a_merge_does_not_depend_on_what_was_merged_before(warm, components, adapters):
    wanted = adapters(("lora_subset_bf16", 1.0))
    warm.use(adapters(("lora_alllinear_bf16", 1.0)))
    warm.use(wanted)

    fresh = WarmPipeline(components("bf16"))
    fresh.use(wanted)

    assert equal(weights(warm), weights(fresh))


def test_a_multiplier_of_zero_leaves_the_bits(warm, adapters):
    base = weights(warm)

    change, (report,) = warm.use(adapters(("lora_alllinear_bf16", 0.0)))

    assert equal(weights(warm), base)
    assert change == "none"
    assert report.layers_touched == 31


def test_several_adapters_merge_in_order_each_rounded_once(warm, components, adapters):
    both = adapters(("lora_r4_bf16", 1.0), ("lora_subset_bf16", -0.5))
    warm.use(both)

    one_by_one = components("bf16")
    WarmPipeline(one_by_one).use(both[:1])
    WarmPipeline(one_by_one).use(both[1:])  # takes what is there for its base

    assert equal(weights(warm), one_by_one.transformer.state_dict())


def test_the_order_of_adapters_is_part_of_the_key(warm, adapters):
    both = adapters(("lora_r4_bf16", 1.0), ("lora_subset_bf16", 1.0))
    warm.use(both)

    assert warm.use(both[::-1])[0] == "swapped"


def test_reports_say_what_each_adapter_did(warm, adapters):
    _, (mixed, subset) = warm.use(adapters(("lora_mixedrank_bf16", 1.0), ("lora_subset_bf16", 2.0)))

    assert mixed.kind == "lora"
    assert len(mixed.ranks) > 1
    assert (subset.layers_touched, subset.layers_total, subset.ranks) == (10, 31, (4,))
    assert subset.path == "lora_subset_bf16.safetensors"


def test_the_same_bytes_under_another_name_need_no_change(warm, adapters):
    wanted = adapters(("lora_r4_bf16", 1.0))
    warm.use(wanted)
    (ref, path), *_ = wanted

    change, (report,) = warm.use([(ref.model_copy(update={"path": "copy.safetensors"}), path)])

    assert change == "none"
    assert report.path == "copy.safetensors"


@pytest.mark.parametrize("before", [[], [("lora_r4_bf16", 1.0)]])
def test_a_failure_in_the_middle_of_a_merge_leaves_the_base(before, warm, adapters, monkeypatch):
    base = weights(warm)
    warm.use(adapters(*before))
    calls = []

    def fails_at_the_seventh_layer(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return merge.layer_delta(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("worker.pipeline.cache.layer_delta", fails_at_the_seventh_layer)
        with pytest.raises(KeyboardInterrupt):
            warm.use(adapters(("lora_alllinear_bf16", 1.0)))

    assert warm.adapter_key == "base"
    assert equal(weights(warm), base)
    assert warm.use(adapters(("lora_subset_bf16", 1.0)))[0] == "merged"


def test_a_second_adapter_that_is_refused_leaves_the_current_one(warm, adapters, goldens, adapter_ref):
    current = adapters(("lora_r4_bf16", 1.0))
    warm.use(current)
    merged, broken = weights(warm), goldens / "adapters_hand/nonfinite.safetensors"

    with pytest.raises(Exception, match="not finite"):
        warm.use([*adapters(("lora_subset_bf16", 1.0)), (adapter_ref(broken), broken)])

    assert equal(weights(warm), merged)
    assert warm.use(current)[0] == "none"


def test_only_touched_parameters_are_copied_to_the_host(warm, adapters):
    warm.use(adapters(("lora_subset_bf16", 1.0)))

    # One double block has eight layers, of which both qkv are three parameters; one single block has two.
    assert len(warm._clean) == 6 + 2 * 3 + 2
