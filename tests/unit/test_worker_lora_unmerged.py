"""Unmerged adapters, held to hand-worked examples and to the latents of AI Toolkit's unmerged previews."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.adapters.kinds import LayerUpdate
from worker.lora.hot_swap import AdapterSwapper
from worker.lora.unmerged_update import UnmergedUpdate, UpdatedRows, forward_patch
from worker.rendering.renderer import Renderer

KINDS = [
    "lora_r4_bf16",
    "lora_r8_alpha1cfg_fp16",
    "lora_mixedrank_bf16",
    "lora_alllinear_bf16",
    "lokr_full_f4_fp16",
    "lokr_lowrank_bf16",
    "lokr_old_lycoris_bf16",
    "dora_bf16",
    "fullrank_bf16",
    "lora_plus_diff_bf16",
]
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
X = torch.tensor([[1.0, 1.0]])
BASE = X @ WEIGHT.T  # 1, 2


def patch_of(kind, tensors, *, rank=None, multiplier=0.5):
    update = LayerUpdate("layer", kind, {role: role for role in tensors}, (2, 2), rank)
    return forward_patch(UnmergedUpdate(update, tensors, multiplier, UpdatedRows(lambda: WEIGHT)))


def test_a_loha_matches_a_hand_worked_example():
    patch = patch_of(
        "loha",
        {
            "hada_w1_a": torch.tensor([[1.0], [2.0]]),
            "hada_w1_b": torch.tensor([[1.0, 3.0]]),
            "hada_w2_a": torch.tensor([[2.0], [1.0]]),
            "hada_w2_b": torch.tensor([[1.0, 1.0]]),
            "alpha": torch.tensor(2.0),
        },
        rank=1,
    )

    # (1 3; 2 6) times (2 2; 1 1), elementwise, gives (2 6; 2 6), times alpha / rank = 2, times 0.5
    assert patch(X, BASE).tolist() == [[1 + 8.0, 2 + 8.0]]


def test_a_lora_matches_a_hand_worked_example():
    patch = patch_of(
        "lora",
        {"down": torch.tensor([[1.0, 2.0]]), "up": torch.tensor([[3.0], [4.0]]), "alpha": torch.tensor(2.0)},
        rank=1,
    )

    # (1 * 1 + 1 * 2) * (3, 4), times alpha / rank = 2, times 0.5
    assert patch(X, BASE).tolist() == [[1 + 9.0, 2 + 12.0]]


def test_a_dora_matches_a_hand_worked_example():
    patch = patch_of(
        "dora",
        {"down": torch.tensor([[2.0, 0.0]]), "up": torch.tensor([[2.0], [0.0]]), "magnitude": torch.tensor([6.0, 2.0])},
        rank=1,
    )

    # W + 0.5 * [[4, 0], [0, 0]] = [[3, 0], [0, 2]]; its rows of length 3 and 2 are scaled to 6 and 2
    assert patch(X, BASE).tolist() == [[6.0, 2.0]]


def test_a_dora_of_columns_matches_a_hand_worked_example():
    tensors = {
        "down": torch.tensor([[2.0, 0.0]]),
        "up": torch.tensor([[0.0], [2.0]]),
        "magnitude": torch.tensor([[5.0, 6.0]]),
        "alpha": torch.tensor(0.5),
    }
    patch = patch_of("dora", tensors, rank=1, multiplier=1.0)

    # W + 0.5 * [[0, 0], [4, 0]] = [[1, 0], [2, 2]]; its columns of length sqrt(5) and 2 are scaled to 5 and 6
    torch.testing.assert_close(patch(X, BASE), torch.tensor([[5**0.5, 2 * 5**0.5 + 6.0]]))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_lokr_with_magnitudes_matches_a_hand_worked_example(shape):
    tensors = {"w1": torch.tensor([[1.0, 2.0]]), "w2": torch.tensor([[2.0], [0.0]])}

    patch = patch_of("lokr", {**tensors, "magnitude": torch.tensor([4.0, 6.0]).view(shape)}, multiplier=1.0)

    # kron = [[2, 4], [0, 0]], so W becomes [[3, 4], [0, 2]]; its rows of length 5 and 2 are scaled to 4 and 6
    torch.testing.assert_close(patch(X, BASE), torch.tensor([[7 * 4 / 5, 6.0]]))


def test_a_lokr_matches_a_hand_worked_example():
    patch = patch_of("lokr", {"w1": torch.tensor([[1.0, 2.0]]), "w2": torch.tensor([[3.0], [4.0]])})

    # kron = [[3, 6], [4, 8]], times (1, 1) = (9, 12), times 0.5
    assert patch(X, BASE).tolist() == [[1 + 4.5, 2 + 6.0]]


def test_a_lokr_of_stored_products_equals_the_lokr_of_the_multiplied_factors():
    generator = torch.Generator().manual_seed(0)
    w1, w2_a, w2_b = (torch.randn(size, generator=generator) for size in ((3, 2), (4, 2), (2, 5)))
    x, base = torch.randn(2, 7, 10, generator=generator), torch.zeros(2, 7, 12)

    products = patch_of("lokr", {"w1": w1, "w2_a": w2_a, "w2_b": w2_b}, rank=2)(x, base)

    torch.testing.assert_close(products, x @ torch.kron(w1, w2_a @ w2_b).T * 0.5)


def test_whole_weights_match_a_hand_worked_example():
    delta = torch.tensor([[0.0, 2.0], [4.0, 0.0]])

    # 0.5 * delta @ (1, 1) = (1, 2)
    assert patch_of("fullrank", {"down": delta})(X, BASE).tolist() == [[2.0, 4.0]]
    assert patch_of("diff", {"diff": delta})(X, BASE).tolist() == [[2.0, 4.0]]


def test_an_update_of_a_bfloat16_layer_is_rounded_once_where_the_trainer_rounds_it():
    down, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[2**-9], [0.0]])
    patch = patch_of("lora", {"down": down, "up": up}, rank=1, multiplier=1.0)

    output = patch(X.bfloat16(), BASE.bfloat16())

    # Bfloat16's steps above 1 are 2**-7, so 1 + 2**-9 is rounded to 1.
    assert output.dtype is torch.bfloat16
    assert output.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_ai_toolkits_unmerged_latents(
    name, precision, components, goldens, cases, sample, adapter_ref, assert_close
):
    (case,) = cases(type="adapter", name=name)
    expected, path = load_file(goldens / case["expected"]), goldens / case["file"]
    model = components(precision)
    prompt_embeds = load_file(goldens / "adapter_expected/_base.safetensors")["prompt_embeds"].to(model.dtype)
    pipeline = AdapterSwapper(model)

    for multiplier in case["multipliers"]:
        pipeline.activate([(adapter_ref(path, multiplier), path)], mode="live")
        latents = sample(model.transformer, prompt_embeds, case["run"])

        golden = expected[f"latents_live_{precision}_m{multiplier}"]
        assert_close(latents, golden, case["tolerance"][f"latents_{precision}"])


@pytest.fixture
def third(tmp_path):
    """A LoRA on the keys of one block alone, by the name that diffusers has for them."""
    generator = torch.Generator().manual_seed(1)
    key = "transformer.transformer_blocks.0.attn.to_k"
    path = tmp_path / "third.safetensors"
    tensors = {
        f"{key}.lora_A.weight": torch.randn(2, 64, generator=generator),
        f"{key}.lora_B.weight": torch.randn(64, 2, generator=generator),
    }
    save_file(tensors, path, metadata={"ss_base_model_version": "flux2"})
    return path


def test_an_update_of_the_keys_alone_reaches_them_and_nothing_else(third, components, adapter_ref):
    model = components("fp32")
    attn = model.transformer.transformer_blocks[0].attn
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    pipeline, before = AdapterSwapper(model), attn.to_qkv(x).chunk(3, dim=-1)

    pipeline.activate([(adapter_ref(third), third)], mode="live")
    live = attn.to_qkv(x).chunk(3, dim=-1)
    pipeline.activate([(adapter_ref(third), third)], mode="merged")
    merged = attn.to_qkv(x).chunk(3, dim=-1)

    assert torch.equal(live[0], before[0])
    assert torch.equal(live[2], before[2])
    assert not torch.allclose(live[1], before[1])
    torch.testing.assert_close(live[1], merged[1], atol=1e-4, rtol=1e-4)


def test_another_adapter_mode_needs_a_swap_and_leaves_no_trace(components, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_alllinear_bf16.safetensors"
    renderer = Renderer(components("bf16"), prompt_cache=4)

    def render(*refs, mode=None):
        spec = item(adapters=refs, adapter_mode=mode)
        return renderer.render(spec, [path] * len(refs), on_progress=lambda _: None)

    ref = adapter_ref(path)
    runs = [render(), render(ref), render(ref, mode="live"), render(ref, mode="live"), render(ref), render()]

    images = [run.image.tobytes() for run in runs]
    assert [run.pipeline.change for run in runs] == ["none", "merged", "swapped", "none", "swapped", "restored"]
    assert [run.pipeline.adapter_mode for run in runs] == ["merged", "merged", "live", "live", "merged", "merged"]
    assert images[0] == images[5]
    assert images[1] == images[4]
    assert images[2] == images[3]
    assert len(set(images)) == 3
    assert renderer.swapper.count_corrupted() == 0
