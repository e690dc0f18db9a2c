"""The engine `ai-toolkit` runs AI Toolkit's own classes from a checkout at AI_TOOLKIT_PATH."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from PIL import Image
from typer.testing import CliRunner

from shared.adapters.identity import sha256_of
from shared.catalog import MODELS as CATALOGUE
from shared.errors import ItemCanceled
from shared.job import AdapterRef, ItemSpec, ReferenceRef
from shared.settings import ModelSettings
from worker.commands import app
from worker.model import rounding
from worker.model.load import load_components
from worker.rendering import toolkit_engine
from worker.rendering.reference_encoder import encode
from worker.rendering.renderer import Renderer
from worker.rendering.toolkit_checkout import load_toolkit
from worker.rendering.toolkit_engine import ToolkitEngine
from worker.verify.golden_models import adapter_ref

ROOT = os.environ.get("AI_TOOLKIT_PATH")  # read at import: a fixture removes it from the tests' environment

pytestmark = pytest.mark.skipif(not ROOT, reason="AI_TOOLKIT_PATH names no checkout of AI Toolkit")

MODELS = {
    "flux2": ("flux2_dev_tiny", "flux2-dev", "mistral_tiny", "mistral_processor_pad_left"),
    "flux2_klein_4b": ("flux2_klein_tiny", "flux-2-klein-base-4b", "qwen3_tiny", "qwen3_tiny"),
    "flux2_klein_4b_distilled": ("flux2_klein_tiny", "flux-2-klein-4b", "qwen3_tiny", "qwen3_tiny"),
}


@pytest.fixture(scope="module")
def renderer(goldens, tmp_path_factory):
    """Makes a renderer with both engines for a model and a precision; each is loaded once."""
    made = {}

    def make(model, precision):
        if (model, precision) not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            weights, name, encoder, processor = MODELS[model]
            shutil.copy(goldens / f"weights/{weights}.safetensors", folder / f"{name}.safetensors")
            shutil.copy(goldens / "weights/ae_tiny.safetensors", folder / "ae.safetensors")
            for part in (encoder, processor):
                shutil.copytree(goldens / "text" / part, folder / "text_encoder", dirs_exist_ok=True)
            settings = ModelSettings(
                id=model, path=str(folder), text_encoder=str(folder / "text_encoder"), precision=precision
            )
            components = load_components(settings, device=torch.device("cpu"), hf_token=None)
            files = {sha256_of(path): path for path in (goldens / "reference/images").iterdir()}
            made[model, precision] = Renderer(
                components,
                prompt_cache=4,
                toolkit=load_toolkit(Path(ROOT)),
                load_reference=lambda sha256: files[sha256].read_bytes(),
            )
        return made[model, precision]

    return make


def item(model="flux2", *, engine="ai-toolkit", adapters: tuple[AdapterRef, ...] = (), **changes):
    values = {
        "model": model,
        "prompt": "a red fox jumps over a river",
        "neg": "a cat",
        "width": 80,
        "height": 64,
        "requested_width": 80,
        "requested_height": 64,
        "seed": 7,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "adapters": adapters,
        "output_format": "png",
        "engine": engine,
    }
    return ItemSpec.model_validate(values | changes)


def both(renderer, spec, paths=()):
    """Render with both engines; return the pixels of each."""
    return [
        renderer.render(spec.model_copy(update={"engine": engine}), paths, on_progress=lambda _: None).image.tobytes()
        for engine in ("exact", "ai-toolkit")
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", list(MODELS))
def test_both_engines_give_the_same_pixels(renderer, model, precision):
    used = renderer(model, precision)

    exact, theirs = both(used, item(model))

    assert used.engines == ("exact", "ai-toolkit")
    assert exact == theirs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_engines_make_one_pass_a_step_at_the_defaults_of_a_distilled_model(renderer, precision):
    model = CATALOGUE["flux2_klein_4b_distilled"]
    used = renderer(model.id, precision)
    values = {"num_inference_steps": model.default_steps, "guidance_scale": model.default_guidance_scale}

    exact, theirs = both(used, item(model.id, **values))
    guided, _ = both(used, item(model.id, **values | {"guidance_scale": 1.01}))

    assert exact == theirs
    assert exact == both(used, item(model.id, **values, neg=""))[1]
    assert exact != guided


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_are_added_to_and_removed_from_both_engines(renderer, goldens, precision):
    used = renderer("flux2", precision)
    base = both(used, item())
    # One adapter touches the last modulation, whose halves AI Toolkit stores in another order.
    for file in (
        "adapters/lora_alllinear_bf16",
        "adapters/lokr_full_bf16",
        "adapters/dora_bf16",
        "adapters/lora_plus_diff_bf16",
        "adapters_hand/diffusers_names_AB",
        "adapters_hand/wild_loha",
        "adapters_hand/wild_dora_magnitude_vector",
    ):
        path = goldens / f"{file}.safetensors"

        for mode in ("merged", "live"):
            exact, theirs = both(used, item(adapters=(adapter_ref(path, 0.7),), adapter_mode=mode), [path])

            assert exact == theirs
            assert exact != base[0]
    assert both(used, item()) == base


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["flux2", "flux2_klein_4b"])
def test_both_engines_give_the_same_pixels_with_reference_images(renderer, goldens, model, precision):
    used, images = renderer(model, precision), goldens / "reference/images"
    references = tuple(
        ReferenceRef(slot=slot, sha256=sha256_of(images / name))
        for slot, name in ((1, "rgba_80x112.png"), (3, "exif6_120x80.jpg"))
    )

    exact, theirs = both(used, item(model, references=references))

    assert exact == theirs
    assert exact != both(used, item(model))[0]


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_both_engines_give_the_same_pixels_with_a_reference_image_and_an_adapter(renderer, goldens, mode):
    used, path = renderer("flux2", "bf16"), goldens / "adapters/lora_r4_bf16.safetensors"
    references = (ReferenceRef(slot=1, sha256=sha256_of(goldens / "reference/images/rgb_101x87.png")),)
    spec = item(adapters=(adapter_ref(path, 0.7),), adapter_mode=mode, references=references)

    exact, theirs = both(used, spec, [path])

    assert exact == theirs
    assert exact != both(used, item(references=references))[0]


def test_a_shape_that_is_accepted_as_a_file_is_accepted_after_its_crop(renderer, tmp_path, monkeypatch):
    # 632x79 has exactly 8:1, and its crop to 624x64 has 9.75:1.
    Image.new("RGB", (632, 79), "red").save(tmp_path / "wide.png")
    used, digest = renderer("flux2", "bf16"), sha256_of(tmp_path / "wide.png")
    monkeypatch.setattr(used.references._images, "_load", lambda sha256: (tmp_path / "wide.png").read_bytes())

    exact, theirs = both(used, item(references=(ReferenceRef(slot=1, sha256=digest),)))

    assert exact == theirs


@pytest.mark.filterwarnings("ignore:There are modules in AutoencoderKLFlux2")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoder", [None, (32, 64, 64, 32), (32, 32, 64, 64)])
def test_autoencoders_with_a_narrower_decoder_encode_the_same_latents(decoder, dtype):
    torch.manual_seed(0)
    ours = AutoencoderKLFlux2(
        block_out_channels=(64, 64, 128, 128), decoder_block_out_channels=decoder, layers_per_block=1
    )
    rounding.match_autoencoder_rounding(ours.requires_grad_(False).eval())
    ours.to(dtype)
    theirs = toolkit_engine.share_autoencoder(load_toolkit(Path(ROOT)), ours)
    pixels = torch.rand(1, 3, 80, 96) * 2 - 1

    with torch.no_grad():
        assert torch.equal(encode(ours, pixels), theirs.encode(pixels.to(dtype)))


def test_both_engines_share_one_copy_of_the_weights(renderer):
    components = renderer("flux2", "bf16").swapper.components

    engine = ToolkitEngine.from_components(components, load_toolkit(Path(ROOT)))

    held = {tensor.untyped_storage().data_ptr() for tensor in components.transformer.state_dict().values()}
    apart = [
        name
        for name, tensor in engine.transformer.state_dict().items()
        if tensor.untyped_storage().data_ptr() not in held
    ]
    assert apart == ["final_layer.adaLN_modulation.1.weight"]


def test_the_report_names_the_engine_and_the_versions(renderer):
    rendered = renderer("flux2", "bf16").render(item(), [], on_progress=lambda _: None)

    assert rendered.pipeline.engine == "ai-toolkit"
    assert rendered.pipeline.versions.keys() == {"torch", "diffusers", "transformers", "ai-toolkit"}


@pytest.mark.parametrize("model", list(MODELS))
def test_progress_is_reported_and_a_cancel_ends_the_run(renderer, model):
    used, seen = renderer(model, "fp32"), []

    def cancel_at_two(progress):
        seen.append((progress.stage, progress.step))
        if seen[-1] == ("denoise", 2):
            raise ItemCanceled("x:0: canceled by the caller")

    with pytest.raises(ItemCanceled):
        used.render(item(model), [], on_progress=cancel_at_two)

    assert seen == [("encode", 0), ("adapter", 0), ("denoise", 0), ("denoise", 1), ("denoise", 2)]
    assert len(set(both(used, item(model)))) == 1


def test_ai_toolkits_engine_meets_the_goldens(goldens):
    done = CliRunner().invoke(app, ["verify", str(goldens), "--engine", "ai-toolkit", "--toolkit", ROOT])

    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "97 passed, 0 failed"
