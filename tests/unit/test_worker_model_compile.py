"""Compiled blocks give the bits of the modules they were made from, and still run unmerged adapters.

On a CPU a handful of values in a million differ in their last bit, since compiled code computes exponentials of a row's
end one by one; on a GPU none do, which tests/gpu holds it to.
"""

import shutil
from contextlib import contextmanager

import pytest
import torch

from shared.job import ItemSpec
from shared.settings import ModelSettings
from worker.model.compile import compile_blocks
from worker.model.load import load_components
from worker.rendering.latents import image_ids, text_ids
from worker.rendering.renderer import Renderer
from worker.verify.golden_models import adapter_ref

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.skipif(
        not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler, which compiling needs on a CPU"
    ),
]


@pytest.fixture(scope="module")
def load(goldens, tmp_path_factory):
    """Load the goldens' model in bfloat16, with larger weights in its blocks, so that roundings show."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(goldens / "weights/flux2_dev_tiny.safetensors", folder / "flux2-dev.safetensors")
    shutil.copy(goldens / "weights/ae_tiny.safetensors", folder / "ae.safetensors")
    for part in ("mistral_tiny", "mistral_processor_pad_left"):
        shutil.copytree(goldens / "text" / part, folder / "text_encoder", dirs_exist_ok=True)

    def load(*, compiled):
        settings = ModelSettings(
            path=str(folder),
            text_encoder=str(folder / "text_encoder"),
            precision="bf16",
            compile=compiled,
            clean_weights="host",  # the weights are changed below, so the files no longer have them
        )
        components = load_components(settings, device=torch.device("cpu"), hf_token=None)
        torch.manual_seed(1)
        for name, weight in components.transformer.named_parameters():
            if weight.ndim == 2 and "block" in name:
                weight += torch.randn_like(weight) * 0.05
        return components

    return load


@pytest.fixture(scope="module")
def written(load):
    return load(compiled=False)


@pytest.fixture(scope="module")
def compiled(load):
    return load(compiled=True)


@torch.no_grad()
def predict(components, rows, columns, *references):
    """Run the transformer once; `references` are the rows and columns of reference images."""
    transformer = components.transformer
    random = torch.Generator().manual_seed(2)
    grids = [image_ids(rows, columns), *(image_ids(*grid, time=10 * at) for at, grid in enumerate(references, start=1))]
    ids = torch.cat(grids)
    tokens = torch.randn(1, len(ids), transformer.config.in_channels, generator=random)
    prompt = torch.randn(1, 512, transformer.config.joint_attention_dim, generator=random)
    return transformer(
        hidden_states=tokens.bfloat16(),
        encoder_hidden_states=prompt.bfloat16(),
        timestep=torch.tensor([0.7]).bfloat16(),
        guidance=torch.tensor([4.0]).bfloat16(),
        img_ids=ids,
        txt_ids=text_ids(512),
        return_dict=False,
    )[0]


def different(found, expected):
    """Share of the values that are not the same to the bit."""
    return (found != expected).float().mean().item()


@contextmanager
def no_recompilation():
    torch._dynamo.config.error_on_recompile = True
    try:
        yield
    finally:
        torch._dynamo.config.error_on_recompile = False


def test_every_size_gives_the_same_bits_from_one_compilation(written, compiled):
    predict(compiled, 8, 8)  # as many tokens as the model is wide: still two dimensions

    with no_recompilation():
        for rows, columns in ((4, 6), (4, 4), (8, 8), (3, 10)):
            assert different(predict(compiled, rows, columns), predict(written, rows, columns)) < 0.01


def test_reference_tokens_give_the_same_bits_without_another_compilation(written, compiled):
    predict(compiled, 8, 8)

    with no_recompilation():
        for references in ([(4, 6)], [(5, 4), (4, 4), (8, 32)]):
            found, expected = predict(compiled, 4, 6, *references), predict(written, 4, 6, *references)
            assert different(found, expected) < 0.01
            # The references reach the image's rows.
            assert different(expected[:, :24], predict(written, 4, 6)) > 0.1


def test_without_emulated_roundings_the_bits_are_different(written, load):
    careless = load(compiled=False)
    compile_blocks(careless.transformer, exact=False)

    assert different(predict(careless, 4, 6), predict(written, 4, 6)) > 0.1


def render(renderer, path=None, *, mode=None):
    spec = ItemSpec(
        model="flux2",
        prompt="a red fox",
        neg="",
        width=96,
        height=64,
        requested_width=96,
        requested_height=64,
        seed=11,
        num_inference_steps=2,
        guidance_scale=4.0,
        adapters=() if path is None else (adapter_ref(path, 0.8),),
        output_format="png",
        adapter_mode=mode,
    )
    return renderer.render(spec, [path] if path else [], on_progress=lambda _: None).image.tobytes()


def test_adapters_take_effect_in_compiled_blocks_and_are_removed_again(written, compiled, goldens):
    renderer, reference = Renderer(compiled, prompt_cache=4), Renderer(written, prompt_cache=4)
    merged, live = goldens / "adapters/lora_alllinear_bf16.safetensors", goldens / "adapters/dora_bf16.safetensors"
    base = render(renderer)

    with no_recompilation():
        changed = render(renderer, merged)
        # Unmerged adapters run uncompiled, so no bit may differ.
        assert render(renderer, live, mode="live") == render(reference, live, mode="live")
        assert render(renderer) == base
    assert changed != base
