"""Swaps of adapters: the bits after each swap, the causes of failures, and the weights after a failure."""

import errno
import itertools
import os
import random
import shutil
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.adapters.inspection import inspect_adapter
from shared.adapters.inspection_text import describe_scale
from shared.errors import AdapterRefused, WeightsLost
from shared.settings import ModelSettings
from worker.kernels.checksum import checksum
from worker.lora import load as module
from worker.lora import merge, unmerged_update
from worker.lora.adapter_swap import SwapState
from worker.lora.hot_swap import AdapterSwapper
from worker.model.load import load_components
from worker.model.placement import Placement
from worker.rendering.denoise import TransformerInputs, predict
from worker.rendering.latents import image_ids, text_ids

# One file of each kind and layout.
KINDS = [
    "lora_r4_bf16",
    "lora_alllinear_bf16",
    "lokr_full_f4_fp16",
    "lokr_lowrank_bf16",
    "lokr_old_lycoris_bf16",
    "dora_bf16",
    "fullrank_bf16",
    "lora_plus_diff_bf16",
    "downup_alpha_mixedrank",
    "diffusers_names_AB",
    "lokr_w1ab_w2ab_alpha",
]


@pytest.fixture
def adapters(goldens, adapter_ref):
    """Pair adapter files with references: `adapters(("lora_r4_bf16", 1.0), ...)`."""

    def make(*wanted):
        found = [list(goldens.glob(f"adapters*/{name}.safetensors")) for name, _ in wanted]
        paths = [path for (path,) in found]
        return [(adapter_ref(path, multiplier), path) for path, (_, multiplier) in zip(paths, wanted, strict=True)]

    return make


@pytest.fixture
def swapper(components):
    return AdapterSwapper(components("bf16"))


def weights(swapper):
    return {name: value.clone() for name, value in swapper.components.transformer.state_dict().items()}


@pytest.fixture
def run_once():
    """Run a transformer once on the same inputs."""

    def run(components):
        generator = torch.Generator().manual_seed(1)
        config = components.transformer.config

        def draw(*shape):
            return torch.randn(*shape, generator=generator).to(components.dtype)

        call = TransformerInputs(
            draw(1, 24, config.in_channels), torch.tensor([0.5], dtype=components.dtype),
            draw(1, 8, config.joint_attention_dim), image_ids(4, 6), text_ids(8), torch.tensor([4.0]),
        )  # fmt: skip
        with torch.no_grad():
            return predict(components.transformer, call)

    return run


def wait_for_end(swapper):
    """Return the state in which the latest swap ends, without taking its failure."""
    swap = swapper._swap
    with swap._changed:
        assert swap._changed.wait_for(lambda: swap.state in (SwapState.READY, SwapState.FAILED), timeout=20)
    return swap.state


def equal(left, right):
    return all(torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left)


def test_each_swap_reports_its_kind(swapper, adapters):
    one, other = adapters(("lora_r4_bf16", 1.0)), adapters(("lora_subset_bf16", 1.0))

    changes = [swapper.activate(wanted)[0] for wanted in ([], one, one, other, [], [])]

    assert changes == ["none", "merged", "none", "swapped", "restored", "none"]


def test_another_multiplier_is_another_key(swapper, adapters):
    swapper.activate(adapters(("lora_r4_bf16", 1.0)))

    change, (report,) = swapper.activate(adapters(("lora_r4_bf16", 0.5)))

    assert change == "swapped"
    assert report.multiplier == 0.5


def test_base_weights_are_restored_to_the_bit_after_many_swaps(swapper, adapters):
    base = weights(swapper)
    for multiplier in (1.0, -1.0, 0.3):
        for name in ("lora_r4_bf16", "lora_alllinear_bf16", "lora_subset_bf16"):
            swapper.activate(adapters((name, multiplier)))

    swapper.activate([])

    assert equal(weights(swapper), base)


def test_a_merge_does_not_depend_on_what_was_merged_before(swapper, components, adapters):
    wanted = adapters(("lora_subset_bf16", 1.0))
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))
    swapper.activate(wanted)

    fresh = AdapterSwapper(components("bf16"))
    fresh.activate(wanted)

    assert equal(weights(swapper), weights(fresh))


def every_ordered_pair(count):
    """Order 0..count-1 so that every number follows every other, and itself, exactly once."""
    walk = [number for i in range(count) for pair in [(i,), *((i, j) for j in range(i + 1, count))] for number in pair]
    return [*walk, 0]


def test_the_walk_takes_every_swap_once():
    walk = every_ordered_pair(3)

    assert walk == [0, 0, 1, 0, 2, 1, 1, 2, 2, 0]
    assert len(set(itertools.pairwise(walk))) == 9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_swap_from_any_kind_to_any_other_equals_merging_it_afresh(precision, components, adapters):
    swapper, model = AdapterSwapper(components(precision)), components(precision)
    base = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    wanted, afresh = [adapters((name, -1.5)) for name in KINDS], []
    for one in wanted:
        AdapterSwapper(model).activate(one)
        afresh.append({name: value.clone() for name, value in model.transformer.state_dict().items()})
        model.transformer.load_state_dict(base)

    for kind in every_ordered_pair(len(KINDS)):
        swapper.activate(wanted[kind])

        assert equal(swapper.components.transformer.state_dict(), afresh[kind]), KINDS[kind]

    swapper.activate([])
    assert equal(weights(swapper), base)
    assert swapper.count_corrupted() == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("seed", range(2))
def test_the_base_weights_are_restored_to_the_bit_after_any_sequence(seed, precision, components, adapters):
    choose = random.Random(seed)
    swapper = AdapterSwapper(components(precision))
    base = weights(swapper)

    for _ in range(25):
        names = choose.sample(KINDS, choose.choice([0, 1, 1, 1, 2, 3]))
        swapper.activate(adapters(*((name, choose.choice([-2.0, -1.0, 0.0, 0.3, 1.0, 2.0])) for name in names)))
        assert swapper.count_corrupted() == 0
        if not names:
            assert equal(weights(swapper), base)

    swapper.activate([])
    assert equal(weights(swapper), base)
    assert swapper.count_corrupted() == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_multiplier_of_zero_leaves_the_bits(name, swapper, adapters):
    base = weights(swapper)

    change, (report,) = swapper.activate(adapters((name, 0.0)))

    assert equal(weights(swapper), base)
    assert change == "none"
    assert report.layers_touched > 0


def test_a_dora_scales_what_was_merged_before_it_so_its_place_in_the_list_counts(components, adapters):
    first, last = adapters(("lora_r4_bf16", 1.0)), adapters(("dora_bf16", 1.0))
    swapper, other = AdapterSwapper(components("bf16")), AdapterSwapper(components("bf16"))

    swapper.activate([*first, *last])
    other.activate([*last, *first])

    assert not equal(weights(swapper), weights(other))


def test_every_parameter_whose_bits_are_not_its_base_values_is_counted_as_corrupted(swapper, adapters):
    assert swapper.count_corrupted() == 0
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))
    swapper.activate([])
    qkv, last = (
        swapper._weights._weights[name] for name in ("transformer_blocks.0.attn.to_k.weight", "norm_out.linear.weight")
    )

    with torch.no_grad():
        qkv[63, 5] = -qkv[63, 5]  # one sign bit
        last[0, 0] += 1
        last[1, 0] -= 1

    assert swapper.count_corrupted() == 2


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("bit", [0, 15, 31, 47, 63])
def test_a_single_bit_anywhere_in_a_row_changes_the_checksum(row, bit):
    weight = torch.zeros(4, 4, dtype=torch.bfloat16)
    before = checksum(weight)

    weight.view(torch.int16)[row, bit // 16] = -(2**15) if bit % 16 == 15 else 1

    assert checksum(weight) != before


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_rows_of_any_length_have_a_checksum(columns):
    weight = torch.ones(3, columns, dtype=torch.bfloat16)
    changed = weight.clone()
    changed[2, columns - 1] = 2

    assert checksum(weight) != checksum(changed)


def test_parameters_that_carry_an_adapter_are_not_counted_as_corrupted(swapper, adapters):
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))
    swapper.activate(adapters(("lora_subset_bf16", 1.0)))
    base, merged = (
        swapper._weights._weights[name] for name in ("norm_out.linear.weight", "transformer_blocks.0.attn.to_k.weight")
    )

    with torch.no_grad():
        base[0, 0] += 1
        merged[0, 0] += 1

    assert swapper.count_corrupted() == 1


def test_several_adapters_merge_in_order_each_rounded_once(swapper, components, adapters):
    both = adapters(("lora_r4_bf16", 1.0), ("lora_subset_bf16", -0.5))
    swapper.activate(both)

    one_by_one = components("bf16")
    AdapterSwapper(one_by_one).activate(both[:1])
    AdapterSwapper(one_by_one).activate(both[1:])  # its base is the model with the first adapter

    assert equal(weights(swapper), one_by_one.transformer.state_dict())


def test_the_order_of_adapters_is_part_of_the_key(swapper, adapters):
    both = adapters(("lora_r4_bf16", 1.0), ("lora_subset_bf16", 1.0))
    swapper.activate(both)

    assert swapper.activate(both[::-1])[0] == "swapped"


def test_reports_say_what_each_adapter_did(swapper, adapters):
    _, (mixed, subset) = swapper.activate(adapters(("lora_mixedrank_bf16", 1.0), ("lora_subset_bf16", 2.0)))

    assert mixed.kind == "lora"
    assert len(mixed.ranks) > 1
    assert (subset.layers_touched, subset.layers_total, subset.ranks) == (10, 31, (4,))
    assert subset.path == "lora_subset_bf16.safetensors"


def test_the_same_bytes_under_another_name_need_no_swap(swapper, adapters):
    wanted = adapters(("lora_r4_bf16", 1.0))
    swapper.activate(wanted)
    (ref, path), *_ = wanted

    change, (report,) = swapper.activate([(ref.model_copy(update={"path": "copy.safetensors"}), path)])

    assert change == "none"
    assert report.path == "copy.safetensors"


def test_reports_name_every_kind_and_only_real_ranks(swapper, adapters):
    wanted = adapters(("lora_plus_diff_bf16", 1.0), ("lokr_full_f4_fp16", 1.0), ("dora_bf16", 1.0))

    _, reports = swapper.activate(wanted)

    assert [(report.kind, report.ranks) for report in reports] == [("diff+lora", (4,)), ("lokr", ()), ("dora", (4,))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lora_r4_bf16", "1 (no alpha stored)"),
        ("AB_alpha_mixedrank", "0.25 to 2 (alpha tensors)"),
        ("wild_kohya_lora_unet", "0.5 (alpha tensors)"),
        ("wild_metadata_lora_adapter", "2 (lora_adapter_metadata in the header)"),
        ("lokr_full_f4_fp16", "1 (the stored alpha has no effect without a rank)"),
        ("fullrank_bf16", "1 (no alpha stored)"),
        ("lora_plus_diff_bf16", "1 (no alpha stored)"),
    ],
)
@pytest.mark.parametrize("mode", ["merged", "live"])
def test_a_report_states_the_scales_by_which_the_updates_are_multiplied_as_inspect_does(
    mode, name, text, swapper, adapters, monkeypatch
):
    applied = []

    def scale_of(update, tensors, original=merge.scale_of):
        applied.append(original(update, tensors))
        return applied[-1]

    monkeypatch.setattr(merge, "scale_of", scale_of)
    monkeypatch.setattr(unmerged_update, "scale_of", scale_of)
    [(ref, path)] = wanted = adapters((name, 1.0))

    _, (report,) = swapper.activate(wanted, mode=mode)

    found = inspect_adapter(path, max_bytes=ref.size_bytes)
    assert (report.scale_range, report.scale_sources) == (found.scale_range, found.scale_sources)
    assert describe_scale(report.scale_range, report.scale_sources) == text
    # Full-rank updates are not multiplied.
    assert name == "fullrank_bf16" or (min(applied), max(applied)) == report.scale_range


@pytest.mark.parametrize("before", [[], [("lora_r4_bf16", 1.0)], [("dora_bf16", 1.0), ("lora_subset_bf16", 0.5)]])
@pytest.mark.parametrize(("place", "room"), [("file", 0), ("file", 300_000), ("device", 0)])
def test_a_failure_in_the_middle_of_a_merge_leaves_the_base(
    place, room, before, components, adapters, failing_at_layer
):
    swapper = AdapterSwapper(
        replace(components("bf16"), placement=Placement("resident", place, 0, device_backup_bytes=room))
    )
    base = weights(swapper)
    swapper.activate(adapters(*before))

    with failing_at_layer(7, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))

    assert swapper.warm_key == "base"
    assert equal(weights(swapper), base)
    assert swapper.activate(adapters(("lora_subset_bf16", 1.0)))[0] == "merged"


def test_a_second_adapter_that_is_refused_leaves_the_current_one(swapper, adapters, goldens, adapter_ref):
    current = adapters(("lora_r4_bf16", 1.0))
    swapper.activate(current)
    merged, broken = weights(swapper), goldens / "adapters_hand/nonfinite.safetensors"

    with pytest.raises(Exception, match="not finite"):
        swapper.activate([*adapters(("lora_subset_bf16", 1.0)), (adapter_ref(broken), broken)])

    assert equal(weights(swapper), merged)
    assert swapper.activate(current)[0] == "none"


@pytest.fixture
def reads(monkeypatch):
    """Names of the adapter files that were read, in order."""
    names = []
    read = module._tensors

    def noting(path):
        names.append(path.stem)
        return read(path)

    monkeypatch.setattr(module, "_tensors", noting)
    return names


def test_adapters_that_alternate_are_read_once(components, adapters, reads):
    swapper = AdapterSwapper(components("bf16"), adapter_cache_bytes=10_000_000)
    merged = {}
    for name, multiplier in [("lora_r4_bf16", 1.0), ("lora_subset_bf16", 1.0)] * 2 + [("lora_r4_bf16", 0.5)]:
        swapper.activate(adapters((name, multiplier)))
        now = weights(swapper)
        assert equal(merged.setdefault((name, multiplier), now), now)

    assert reads == ["lora_r4_bf16", "lora_subset_bf16"]


def test_the_cache_keeps_the_adapters_that_were_used_last(components, adapters, reads):
    one, other, third = (adapters((name, 1.0)) for name in ("lora_r4_bf16", "lora_subset_bf16", "lokr_lowrank_bf16"))
    room = sum(ref.size_bytes for ((ref, _),) in (one, other, third)) - 1
    swapper = AdapterSwapper(components("bf16"), adapter_cache_bytes=room)

    for wanted in (one, other, one, third, one, other):
        swapper.activate(wanted)

    assert reads == ["lora_r4_bf16", "lora_subset_bf16", "lokr_lowrank_bf16", "lora_subset_bf16"]


def test_without_a_cache_every_swap_reads_the_file(components, adapters, reads):
    swapper = AdapterSwapper(components("bf16"))

    for multiplier in (1.0, 0.5):
        swapper.activate(adapters(("lora_r4_bf16", multiplier)))

    assert reads == ["lora_r4_bf16", "lora_r4_bf16"]


def test_a_cached_adapter_is_still_refused_once_its_file_has_changed(components, adapters, tmp_path):
    swapper = AdapterSwapper(components("bf16"), adapter_cache_bytes=10_000_000)
    ((ref, path),) = adapters(("lora_r4_bf16", 1.0))
    mine = shutil.copy(path, tmp_path / "mine.safetensors")
    swapper.activate([(ref, mine)])
    mine.write_bytes(mine.read_bytes() + b" ")

    with pytest.raises(AdapterRefused, match="has changed since the job was accepted"):
        swapper.activate([(ref.model_copy(update={"multiplier": 0.5}), mine)])


@pytest.fixture
def extreme(tmp_path, adapter_ref):
    """Write LoRAs of rank 1 for one layer, whose product is `value` everywhere."""

    def write(layer, value, *, rows=64, columns=64):
        path = tmp_path / f"{layer}-{value}.safetensors"
        tensors = {
            f"diffusion_model.{layer}.lora_A.weight": torch.ones(1, columns),
            f"diffusion_model.{layer}.lora_B.weight": torch.full((rows, 1), value),
        }
        save_file(tensors, path)
        return [(adapter_ref(path, 1.0), path)]

    return write


@pytest.mark.parametrize("before", [[], [("lora_alllinear_bf16", 1.0)]])
def test_an_adapter_that_makes_a_weight_infinite_is_refused_and_leaves_the_base(before, swapper, adapters, extreme):
    base = weights(swapper)
    swapper.activate(adapters(*before))

    with pytest.raises(AdapterRefused, match=r"^double_blocks\.0\.img_attn\.proj: .* not finite"):
        swapper.activate(extreme("double_blocks.0.img_attn.proj", 3.4e38))

    assert swapper.warm_key == "base"
    assert equal(weights(swapper), base)
    assert swapper.count_corrupted() == 0


def test_an_adapter_that_was_never_trained_leaves_even_negative_zeros(swapper, extreme):
    layer = "double_blocks.0.img_attn.proj"
    weight = swapper._weights._weights["transformer_blocks.0.attn.to_out.0.weight"]
    with torch.no_grad():
        weight[0, 0] = -0.0

    change, _ = swapper.activate(extreme(layer, 0.0))

    assert change == "merged"
    assert torch.signbit(weight[0, 0])


def test_a_step_that_starts_while_weights_are_written_uses_the_new_weights(swapper, components, adapters, run_once):
    for wanted in (adapters(("lora_alllinear_bf16", 1.0)), adapters(("dora_bf16", 1.0)), []):
        fresh = AdapterSwapper(components("bf16"))
        fresh.activate(wanted)

        swapper.activate(wanted, wait=False)
        early = run_once(swapper.components)
        swapper.wait()

        assert torch.equal(early, run_once(fresh.components))


@pytest.mark.parametrize("passes", [1, 2])
def test_the_last_passes_run_with_the_old_weights_while_the_next_are_written(
    passes, swapper, components, adapters, run_once
):
    old, new = adapters(("lora_alllinear_bf16", 1.0)), adapters(("dora_bf16", 1.0))
    expected = {}
    for name, wanted in (("old", old), ("new", new)):
        fresh = AdapterSwapper(components("bf16"))
        fresh.activate(wanted)
        expected[name] = run_once(fresh.components)
    swapper.activate(old)

    swapper.begin_next(new, passes=passes)
    for _ in range(passes):
        assert torch.equal(run_once(swapper.components), expected["old"])
    key = swapper.warm_key
    change, reports = swapper.activate(new, wait=False)

    assert torch.equal(run_once(swapper.components), expected["new"])
    swapper.wait()
    assert (change, [report.path for report in reports]) == ("swapped", [ref.path for ref, _ in new])
    assert key == swapper.warm_key
    assert swapper.activate(new)[0] == "none"
    assert swapper.count_corrupted() == 0


def test_a_swap_begun_for_an_item_that_never_renders_is_followed_by_another_swap(swapper, adapters):
    base = weights(swapper)
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))

    swapper.begin_next(adapters(("dora_bf16", 1.0)), passes=1)  # a pass that never runs
    change, _ = swapper.activate([])

    assert change == "restored"
    assert equal(weights(swapper), base)


def test_no_swap_is_begun_early_for_adapters_that_are_current_unmerged_or_refused(
    swapper, adapters, adapter_ref, tmp_path
):
    lora = adapters(("lora_alllinear_bf16", 1.0))
    swapper.activate(lora)
    current = weights(swapper)

    swapper.begin_next(lora, passes=1)
    swapper.begin_next(adapters(("dora_bf16", 1.0)), mode="live", passes=1)
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterRefused):
        swapper.begin_next(
            [(adapter_ref(tmp_path / "broken.safetensors", 1.0), tmp_path / "broken.safetensors")], passes=1
        )

    assert equal(weights(swapper), current)
    assert swapper.activate(lora)[0] == "none"


def test_a_swap_begun_early_ends_even_if_a_lost_device_cannot_record_that_the_passes_ended(
    swapper, adapters, monkeypatch
):
    def broken():
        raise RuntimeError("device lost")

    monkeypatch.setattr(swapper._gate, "_record_event", broken)
    swapper.begin_next(adapters(("lora_r4_bf16", 1.0)), passes=1)

    with pytest.raises(RuntimeError, match="device lost"):
        swapper.abandon_passes()

    assert wait_for_end(swapper) is SwapState.FAILED  # the thread that writes needs events too, but it does not hang


def test_a_dora_row_of_zeros_is_refused_for_its_zeros_and_leaves_the_base(swapper, adapter_ref, tmp_path):
    layer = "double_blocks.0.img_attn.proj"
    weight = swapper._weights._weights["transformer_blocks.0.attn.to_out.0.weight"]
    # The update takes row 3 away.
    up = torch.zeros(weight.shape[0], 1)
    up[3] = -1
    path = tmp_path / "dora.safetensors"
    tensors = {
        f"{layer}.lora_A.weight": weight[3:4].detach().float(),
        f"{layer}.lora_B.weight": up,
        f"{layer}.dora_scale": torch.ones_like(up),
    }
    save_file(tensors, path)
    base = weights(swapper)

    with pytest.raises(AdapterRefused, match=rf"^{layer}: .* is all zeros .* length in '{layer}.dora_scale'; change"):
        swapper.activate([(adapter_ref(path, 1.0), path)])

    assert equal(weights(swapper), base)


def test_a_swap_begun_early_that_fails_is_the_next_items_failure(swapper, adapters, extreme, run_once):
    wanted = extreme("double_blocks.0.img_attn.proj", 3.4e38)

    swapper.begin_next(wanted, passes=1)
    run_once(swapper.components)

    with pytest.raises(AdapterRefused, match="not finite"):
        swapper.activate(wanted)
    assert swapper.activate(adapters(("lora_r4_bf16", 1.0)))[0] == "merged"


def test_the_states_of_a_swap_that_is_begun_during_the_last_pass(swapper, adapters, run_once):
    wanted = adapters(("lora_alllinear_bf16", 1.0))
    before = (swapper.state, swapper.warm_key)

    swapper.begin_next(wanted, passes=1)
    during = (swapper.state, swapper.warm_key)
    run_once(swapper.components)
    swapper.wait()

    key = wanted[0][0].sha256
    assert before == (SwapState.READY, "base")
    assert during[0] is SwapState.DRAINING
    assert key in during[1]
    assert (swapper.state, swapper.warm_key) == (SwapState.READY, during[1])


def test_abandoned_passes_let_a_swap_that_was_begun_early_complete(swapper, components, adapters):
    wanted = adapters(("lora_alllinear_bf16", 1.0))
    fresh = AdapterSwapper(components("bf16"))
    fresh.activate(wanted)

    swapper.begin_next(wanted, passes=2)
    assert swapper.state is SwapState.DRAINING
    swapper.abandon_passes()

    assert wait_for_end(swapper) is SwapState.READY
    assert equal(weights(swapper), weights(fresh))
    assert swapper.activate(wanted)[0] == "merged"


def test_a_wait_or_another_early_swap_abandons_passes_that_never_ran(swapper, adapters):
    base = weights(swapper)

    swapper.begin_next(adapters(("lora_alllinear_bf16", 1.0)), passes=1)
    swapper.begin_next(adapters(("dora_bf16", 1.0)), passes=1)
    swapper.wait()
    assert swapper.state is SwapState.READY

    assert swapper.activate([])[0] == "restored"
    assert equal(weights(swapper), base)


def test_an_adapter_that_is_refused_before_any_write_leaves_the_warm_key(swapper, adapters, goldens, adapter_ref):
    swapper.activate(adapters(("lora_r4_bf16", 1.0)))
    key, broken = swapper.warm_key, goldens / "adapters_hand/nonfinite.safetensors"

    with pytest.raises(AdapterRefused):
        swapper.activate([(adapter_ref(broken), broken)])
    assert swapper.warm_key == key
    with pytest.raises(AdapterRefused):
        swapper.begin_next([(adapter_ref(broken), broken)], passes=1)

    assert (swapper.state, swapper.warm_key) == (SwapState.READY, key)


def test_an_adapter_that_fails_while_it_is_written_is_never_warm_afterwards(swapper, adapters, extreme, run_once):
    swapper.activate(adapters(("lora_r4_bf16", 1.0)))
    swapper.begin_next(extreme("double_blocks.0.img_attn.proj", 3.4e38), passes=1)
    run_once(swapper.components)

    assert wait_for_end(swapper) is SwapState.FAILED
    assert swapper.warm_key == "base"
    assert swapper.activate([]) == ("none", ())


def test_the_warm_key_can_be_read_while_another_thread_swaps(swapper, adapters):
    wanted = [adapters((name, 1.0)) for name in ("lora_r4_bf16", "lora_subset_bf16")]
    keys = {"base"}
    for one in wanted:
        swapper.activate(one)
        keys.add(swapper.warm_key)
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            seen.append(swapper.warm_key)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(5):
        for one in wanted:
            swapper.activate(one)
    stop.set()
    thread.join(20)

    assert {*seen} <= keys


@pytest.mark.parametrize("error", [RuntimeError("no thread"), KeyboardInterrupt()])
def test_a_swap_that_cannot_be_begun_is_failed_and_the_next_one_cleans_up(error, swapper, adapters, monkeypatch):
    base = weights(swapper)
    swapper.activate(adapters(("lora_r4_bf16", 1.0)))

    with monkeypatch.context() as patch:
        patch.setattr(swapper._thread, "submit", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            swapper.activate(adapters(("dora_bf16", 1.0)), mode="live")

    assert (swapper.state, swapper.warm_key) == (SwapState.FAILED, "base")
    swapper.wait()
    assert swapper.activate([])[0] == "restored"
    assert equal(weights(swapper), base)


@pytest.mark.parametrize("early", [True, False])
def test_a_swap_that_could_not_be_begun_is_begun_again_by_an_item_with_the_same_adapters(
    early, swapper, components, adapters, monkeypatch
):
    wanted = adapters(("lora_r4_bf16", 1.0))
    fresh = AdapterSwapper(components("bf16"))
    fresh.activate(wanted)

    with monkeypatch.context() as patch:
        patch.setattr(swapper._thread, "submit", lambda *_: (_ for _ in ()).throw(RuntimeError("no thread")))
        with pytest.raises(RuntimeError, match="no thread"):
            swapper.begin_next(wanted, passes=1) if early else swapper.activate(wanted)

    assert swapper.activate(wanted)[0] == "merged"
    assert equal(weights(swapper), weights(fresh))


def test_a_swap_whose_thread_could_not_be_started_writes_nothing_later(swapper, components, adapters, monkeypatch):
    lost, wanted = adapters(("lora_alllinear_bf16", 1.0)), adapters(("lora_r4_bf16", 1.0))
    fresh = AdapterSwapper(components("bf16"))
    fresh.activate(wanted)
    written, write = [], swapper._weights.write
    monkeypatch.setattr(swapper._weights, "write", lambda merges: written.append(len(merges)) or write(merges))

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
        with pytest.raises(RuntimeError, match="no thread"):
            swapper.activate(lost)
    swapper.activate(wanted)

    assert len(written) == 1
    assert equal(weights(swapper), weights(fresh))


def test_an_item_is_refused_even_if_the_failure_of_its_early_swap_was_raised_before(
    swapper, adapters, extreme, run_once
):
    refused = extreme("double_blocks.0.img_attn.proj", 3.4e38)
    swapper.begin_next(refused, passes=1)
    run_once(swapper.components)
    with pytest.raises(AdapterRefused):
        swapper.wait()

    with pytest.raises(AdapterRefused):
        swapper.activate(refused)


def test_a_swap_that_nobody_waited_for_is_complete_before_the_next(swapper, adapters):
    base = weights(swapper)

    for name in KINDS:
        swapper.activate(adapters((name, 1.0)), wait=False)
    swapper.activate([])

    assert equal(weights(swapper), base)
    assert swapper.count_corrupted() == 0


def test_a_refused_swap_that_nobody_waited_for_does_not_fail_the_next(swapper, adapters, extreme):
    swapper.activate(extreme("double_blocks.0.img_attn.proj", 3.4e38), wait=False)

    assert swapper.activate(adapters(("lora_r4_bf16", 1.0)))[0] == "merged"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("broken")])
def test_a_swap_that_failed_for_an_item_that_has_ended_does_not_fail_the_next(error, swapper, adapters, monkeypatch):
    base = weights(swapper)

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("worker.lora.apply.weight_delta", fails)
        swapper.activate(adapters(("lora_alllinear_bf16", 1.0)), wait=False)
        assert wait_for_end(swapper) is SwapState.FAILED

    assert swapper.activate([])[0] == "none"
    assert equal(weights(swapper), base)


@pytest.mark.parametrize("wait", [True, False])
def test_an_unmerged_adapter_whose_swap_failed_is_detached_by_the_next_item(wait, swapper, adapters, monkeypatch):
    base = weights(swapper)
    swapper.activate(adapters(("lora_r4_bf16", 1.0)))

    with monkeypatch.context() as patch:  # while the merged adapter's weights are restored
        patch.setattr(swapper._weights._base, "restore", fails_once(swapper._weights._base.restore))
        with pytest.raises(RuntimeError, match="broken") if wait else nullcontext():
            swapper.activate(adapters(("dora_bf16", 1.0)), mode="live", wait=wait)
        if not wait:
            assert wait_for_end(swapper) is SwapState.FAILED

    assert swapper.activate([])[0] == "restored"
    assert not swapper.unmerged
    assert equal(weights(swapper), base)


def fails_once(call):
    failed = []

    def first(*args):
        if not failed:
            failed.append(True)
            raise RuntimeError("broken")
        return call(*args)

    return first


def test_a_failed_swap_is_undone_on_the_stream_that_it_ran_on(swapper, adapters, monkeypatch):
    entered, within = [], []

    @contextmanager
    def stream(_):
        entered.append(True)
        yield
        entered.pop()

    restore = swapper._weights._base.restore
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(swapper._weights._base, "restore", lambda *args: within.append(bool(entered)) or restore(*args))
    monkeypatch.setattr("worker.lora.apply.weight_delta", fails_after(9))

    with pytest.raises(AdapterRefused):
        swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))

    assert within
    assert all(within)


def fails_after(calls):
    left = [calls]

    def change(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise AdapterRefused("not finite")
        return merge.weight_delta(*args, **kwargs)

    return change


def test_a_step_that_waits_for_the_weights_of_a_failing_swap_ends_too(swapper, adapters, run_once, monkeypatch):
    def fails(*args, **kwargs):
        time.sleep(0.1)
        raise AdapterRefused("not finite")

    monkeypatch.setattr("worker.lora.apply.weight_delta", fails)
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)), wait=False)

    run_once(swapper.components)

    with pytest.raises(AdapterRefused, match="not finite"):
        swapper.wait()


def test_only_touched_parameters_are_backed_up(components, adapters):
    swapper = AdapterSwapper(replace(components("bf16"), placement=Placement("resident", "host", 0)))
    base = weights(swapper)

    swapper.activate(adapters(("lora_subset_bf16", 1.0)))

    changed = [name for name, weight in weights(swapper).items() if not torch.equal(weight, base[name])]
    # One double block has eight layers, of which both qkv are three parameters; one single block has two.
    assert len(changed) == 6 + 2 * 3 + 2
    assert swapper._weights._base.copied_bytes == sum(base[name].nbytes for name in changed)


@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_base_weights_are_restored_from_every_place_of_backups(place, components, adapters):
    swapper = AdapterSwapper(replace(components("bf16"), placement=Placement("resident", place, 0)))
    base = weights(swapper)

    for name in ("lora_alllinear_bf16", "dora_bf16", "fullrank_bf16"):
        swapper.activate(adapters((name, 1.0)))
    swapper.activate([])

    assert equal(weights(swapper), base)
    assert (swapper._weights._base.copied_bytes == 0) == (place == "file")


def test_a_blocks_restore_begins_before_that_of_the_block_before_has_ended(swapper, adapters, monkeypatch):
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))
    restore, group_of, seen = swapper._weights._base.restore, swapper._gate.group_of, []

    def watched(name, weight):
        wait = restore(name, weight)
        seen.append(("begun", group_of[name]))
        return lambda: (seen.append(("ended", group_of[name])), wait())

    monkeypatch.setattr(swapper._weights._base, "restore", watched)
    swapper.activate([])

    first_ended = {group: seen.index(("ended", group)) for what, group in seen if what == "ended"}
    begun = {group: seen.index(("begun", group)) for what, group in seen if what == "begun"}
    assert len(begun) > 3
    assert all(begun[group + 1] < first_ended[group] for group in begun if group + 1 in begun)


def test_backups_on_the_device_are_spread_evenly_over_the_blocks(components, adapters):
    made = components("bf16")
    touched = [name for name, weight in made.transformer.named_parameters() if "block" in name and weight.ndim == 2]
    sizes = {name: made.transformer.get_parameter(name).nbytes for name in touched}
    room = sum(sizes.values()) // 2
    swapper = AdapterSwapper(replace(made, placement=Placement("resident", "file", 0, device_backup_bytes=room)))
    base = weights(swapper)

    for name in ("lora_alllinear_bf16", "lora_subset_bf16", "lora_alllinear_bf16"):
        swapper.activate(adapters((name, 1.0)))
    kept = swapper._weights._base._copies.keys()
    by_block = {name.split(".")[0] + name.split(".")[1]: [0, 0] for name in touched}
    for name in touched:
        by_block[name.split(".")[0] + name.split(".")[1]][name in kept] += sizes[name]
    swapper.activate([])

    assert 0.8 * room < swapper._weights._base.copied_bytes <= room
    assert all(from_file and on_device for from_file, on_device in by_block.values()), by_block
    assert equal(weights(swapper), base)


def test_weights_of_another_precision_than_the_checkpoint_are_backed_up_as_copies(components, adapters):
    swapper = AdapterSwapper(components("fp32"))
    base = weights(swapper)

    swapper.activate(adapters(("lora_r4_bf16", 1.0)))
    swapper.activate([])

    assert swapper._weights._base.copied_bytes > 0
    assert equal(weights(swapper), base)


@pytest.fixture
def from_files(checkpoint, tmp_path):
    """A swapper over its own copy of a checkpoint, which a test may damage, and the transformer's file."""
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), clean_weights="file")
    swapper = AdapterSwapper(load_components(settings, device=torch.device("cpu"), hf_token=None))
    return swapper, folder / "flux2-dev.safetensors"


def test_a_checkpoint_that_is_replaced_while_a_worker_runs_changes_nothing(from_files, adapters):
    swapper, file = from_files
    base = weights(swapper)
    swapper.activate(adapters(("lora_r4_bf16", 1.0)))

    other = file.with_name("other")
    other.write_bytes(bytes(file.stat().st_size))
    other.replace(file)
    swapper.activate([])

    assert equal(weights(swapper), base)


def test_a_checkpoint_that_is_overwritten_renders_no_image(from_files, adapters):
    swapper, file = from_files
    swapper.activate(adapters(("lora_r4_bf16", 1.0)))

    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 4)
        opened.write(bytes(file.stat().st_size // 2))

    for wanted in ([], adapters(("lora_r4_bf16", 0.5)), []):
        with pytest.raises(WeightsLost, match="restored weights differ from those that were loaded"):
            swapper.activate(wanted)


def test_a_merge_that_fails_over_an_overwritten_checkpoint_ends_all_rendering(
    from_files, adapters, failing_at_layer, write_over
):
    swapper, file = from_files

    with failing_at_layer(7, AdapterRefused("not finite"), first=lambda: write_over(file)):
        for wanted in (adapters(("lora_alllinear_bf16", 1.0)), [], adapters(("lora_subset_bf16", 1.0))):
            with pytest.raises(WeightsLost, match="restored weights differ from those that were loaded"):
                swapper.activate(wanted)


def test_a_checkpoint_whose_disk_fails_renders_no_image(from_files, adapters, monkeypatch):
    swapper, _ = from_files
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))

    def stale(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "preadv", stale)
    for _ in range(2):
        with pytest.raises(WeightsLost, match=r"cannot be read again: .*Stale file handle"):
            swapper.activate([])


def test_a_checkpoint_that_is_cut_off_renders_no_image(from_files, adapters):
    swapper, file = from_files
    swapper.activate(adapters(("lora_alllinear_bf16", 1.0)))

    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)

    for _ in range(2):
        with pytest.raises(WeightsLost, match=r"cannot be read again: .*flux2-dev\.safetensors: ends at byte"):
            swapper.activate([])


def test_a_config_of_the_job_gives_the_bits_of_the_same_file_with_its_strength(swapper, goldens, adapter_ref, tmp_path):
    source = goldens / "adapters/lora_r4_bf16.safetensors"
    tensors = load_file(source)
    halved = {key: value / 2 if "lora_B" in key else value for key, value in tensors.items()}
    file = tmp_path / "adapter_model.safetensors"
    save_file(halved, file)
    ref = adapter_ref(file).model_copy(update={"peft_config": '{"r":4,"lora_alpha":8}'})
    # What the folder says now does not count: the job has what it said when it was accepted.
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 400}')

    for mode in ("merged", "live"):
        swapper.activate([(adapter_ref(source), source)], mode=mode)
        expected = weights(swapper)
        changes = [swapper.activate([(each, file)], mode=mode)[0] for each in (ref, ref, adapter_ref(file), ref)]

        assert changes == ["swapped", "none", "swapped", "swapped"]
        assert equal(weights(swapper), expected)


def test_a_text_encoder_that_the_job_ignores_changes_nothing_and_is_reported(swapper, goldens, adapter_ref, tmp_path):
    source = goldens / "adapters/lora_r4_bf16.safetensors"
    nan = {f"lora_te_layers_{n}_mlp.{half}.weight": torch.full((4, 4), torch.nan)
           for n in range(3) for half in ("lora_down", "lora_up")}  # fmt: skip
    file = tmp_path / "with_text_encoder.safetensors"
    save_file(load_file(source) | nan, file)
    swapper.activate([(adapter_ref(source), source)])
    expected = weights(swapper)

    with pytest.raises(AdapterRefused, match=r'add "ignore": \["text_encoder"\]'):
        swapper.activate([(adapter_ref(file), file)])
    ref = adapter_ref(file).model_copy(update={"ignore": ("text_encoder",)})
    change, (report,) = swapper.activate([(ref, file)])

    assert (change, report.ignored) == ("swapped", {"text_encoder": 3})
    assert report.layers_touched == 20
    assert equal(weights(swapper), expected)
