"""On a CUDA device: items with reference images, in every engine, compiled and not, merged and live."""

import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from PIL import Image
from typer.testing import CliRunner

from shared.job import ItemSpec, ReferenceRef
from shared.settings import ModelSettings
from worker.commands import app
from worker.model import rounding
from worker.model.compile import compile_blocks, uncompiled
from worker.model.demo_model import write_tiny_adapter, write_tiny_checkpoint
from worker.model.fp8 import convert_to_fp8
from worker.model.load import load_components
from worker.rendering.denoise import TransformerInputs, predict
from worker.rendering.latents import image_ids, text_ids
from worker.rendering.reference_encoder import ReferenceEncoder
from worker.rendering.renderer import Renderer
from worker.rendering.toolkit_checkout import load_toolkit
from worker.verify.golden_models import adapter_ref

ROOT = os.environ.get("AI_TOOLKIT_PATH")  # read here: the tests' environment is emptied of it

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning"),
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda:0")
# Rows and columns of the image, then of each reference.
CASES = [
    ((64, 64), [(64, 64)]),
    ((64, 64), []),
    ((52, 76), [(51, 79), (8, 32)]),
    ((64, 64), [(64, 64), (64, 64), (64, 64)]),
    ((8, 8), [(4, 4)]),
]


def encoded(seed, size=(96, 80)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = {sha256(data).hexdigest(): data for data in (encoded(1), encoded(2, (1040, 1010)), encoded(3, (64, 512)))}
REFERENCES = tuple(ReferenceRef(slot=slot, sha256=digest) for slot, digest in enumerate(FILES, start=1))


def build():
    """Two double and three single blocks of klein 4B's width, with weights that let roundings show."""
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_layers=2, num_single_layers=3, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=True
        )
    rounding.match_transformer_rounding(model)
    model.to_empty(device=DEVICE).to(torch.bfloat16).requires_grad_(False).eval()
    random = torch.Generator(DEVICE).manual_seed(1)
    for weight in model.parameters():
        weight.fill_(1) if weight.ndim == 1 else weight.normal_(0, 0.03, generator=random)
    return model


@torch.no_grad()
def run(model, size, references):
    random = torch.Generator(DEVICE).manual_seed(size[0])
    grids = [image_ids(*size), *(image_ids(*grid, time=10 * place) for place, grid in enumerate(references, start=1))]
    ids = torch.cat(grids).to(DEVICE)

    def draw(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(generator=random)

    call = TransformerInputs(
        draw(1, len(ids), model.config.in_channels), draw(1).abs(), draw(1, 512, 7680), ids, text_ids(512).to(DEVICE),
        torch.tensor([4.0], device=DEVICE).bfloat16(),
    )  # fmt: skip
    return predict(model, call)


def test_no_bit_changes_with_references_and_no_size_recompiles():
    model = build()
    rounding.fuse_qkv(model)
    expected = [run(model, *case) for case in CASES]
    compile_blocks(model, exact=True)
    run(model, (64, 64), [])  # as `Renderer.warm_up` does

    torch._dynamo.config.error_on_recompile = True
    try:
        differing = [int((run(model, *case) != wanted).sum()) for case, wanted in zip(CASES, expected, strict=True)]
    finally:
        torch._dynamo.config.error_on_recompile = False

    assert differing == [0] * len(CASES)


def test_float8_blocks_with_references_are_as_near_the_exact_ones_as_without():
    model = build()
    exact_steps = [run(model, *case).double() for case in CASES]
    convert_to_fp8(model)
    compile_blocks(model, exact=False)

    errors = [
        float((run(model, *case).double() - wanted).norm() / wanted.norm())
        for case, wanted in zip(CASES, exact_steps, strict=True)
    ]

    assert max(errors) < 0.5
    assert max(errors) < 1.5 * min(errors)


@pytest.fixture(scope="module", params=["fp32", "bf16", "qfloat8", "fp8"])
def renderer(request, tmp_path_factory):
    """The demonstration model on the device, in each precision; it is compiled where full-size models are."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    settings = ModelSettings(
        path=str(folder),
        text_encoder=str(folder / "text_encoder"),
        precision=request.param,
        compile=request.param in ("bf16", "fp8"),
    )
    components = load_components(settings, device=DEVICE, hf_token=None)
    used = Renderer(components, prompt_cache=4, load_reference=FILES.__getitem__)
    used.warm_up()
    return used


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "subject.safetensors"
    write_tiny_adapter(path)
    return path


def item(renderer, path=None, *, references=REFERENCES, mode=None):
    return ItemSpec(
        model="flux2",
        prompt="a red circle",
        neg="",
        width=128,
        height=96,
        requested_width=128,
        requested_height=96,
        seed=7,
        num_inference_steps=3,
        guidance_scale=4.0,
        adapters=() if path is None else (adapter_ref(path, 0.7),),
        output_format="png",
        engine=renderer.engines[0],
        adapter_mode=mode,
        references=references,
    )


def render(renderer, path=None, **changes):
    spec = item(renderer, path, **changes)
    rendered = renderer.render(spec, [path] if path else [], on_progress=lambda _: None)
    assert len(rendered.references) == len(spec.references)
    return rendered.image.tobytes()


def test_references_change_images_and_repeat_to_the_bit(renderer):
    plain, one, three = (render(renderer, references=REFERENCES[:count]) for count in (0, 1, 3))

    assert len({plain, one, three}) == 3
    renderer.references.forget()  # encoded again, to the same bits
    assert render(renderer) == three
    assert render(renderer, references=()) == plain


def test_references_that_are_prepared_on_another_stream_give_the_same_bits(renderer):
    base = render(renderer)

    for _ in range(3):
        renderer.references.forget()
        with ThreadPoolExecutor(1) as prefetcher:
            prefetcher.submit(renderer.prepare, item(renderer), []).result()
        assert render(renderer) == base
        # Tokens from host memory.
        renderer.references._uploaded_tokens.clear()
        with ThreadPoolExecutor(1) as prefetcher:
            prefetcher.submit(renderer.prepare, item(renderer), []).result()
        assert render(renderer) == base


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_an_adapter_takes_effect_with_references_and_is_removed_again(renderer, adapter, mode):
    policy = renderer.swapper.components.precision
    if not (policy.can_merge if mode == "merged" else policy.can_run_unmerged):
        pytest.skip(f"{policy.name} weights have no {mode} adapters")
    base = render(renderer)

    changed = render(renderer, adapter, mode=mode)

    assert changed != base
    assert render(renderer, adapter, mode=mode) == changed
    assert render(renderer) == base


def test_compiled_and_uncompiled_blocks_give_the_same_image(renderer):
    if not renderer.swapper.components.compiled or renderer.engines[0] == "fast":
        pytest.skip("compares exact, compiled blocks")
    compiled = render(renderer)

    with uncompiled():
        assert render(renderer) == compiled


def test_an_image_of_one_megapixel_is_encoded_to_the_same_bits_in_each_thread(renderer):
    encoder = ReferenceEncoder(renderer.swapper.components, load=FILES.__getitem__)
    here = encoder.encode(encoder.load(REFERENCES)).tokens

    inside = renderer._decoder.submit(renderer.references.encode, renderer.references.load(REFERENCES)).result().tokens

    assert int((here != inside).sum()) == 0


@pytest.mark.skipif(not ROOT, reason="AI_TOOLKIT_PATH names no checkout")
def test_images_with_references_have_ai_toolkits_bits(goldens):
    options = ["--only", "reference", "--against-toolkit", "--toolkit", ROOT, "--device", "cuda", "--json"]

    report = json.loads(CliRunner().invoke(app, ["verify", str(goldens), *options]).stdout)

    assert [outcome for outcome in report["outcomes"] if not outcome["exact"]] == []
    assert report["passed"] == 20


@pytest.mark.skipif(not ROOT, reason="AI_TOOLKIT_PATH names no checkout")
def test_the_engine_of_ai_toolkit_renders_items_with_references(tmp_path, goldens):
    shutil.copy(goldens / "weights/flux2_dev_tiny.safetensors", tmp_path / "flux2-dev.safetensors")
    shutil.copy(goldens / "weights/ae_tiny.safetensors", tmp_path / "ae.safetensors")
    for part in ("mistral_tiny", "mistral_processor_pad_left"):
        shutil.copytree(goldens / "text" / part, tmp_path / "text_encoder", dirs_exist_ok=True)
    settings = ModelSettings(path=str(tmp_path), text_encoder=str(tmp_path / "text_encoder"), precision="bf16")
    components = load_components(settings, device=DEVICE, hf_token=None)
    both = Renderer(components, prompt_cache=4, toolkit=load_toolkit(Path(ROOT)), load_reference=FILES.__getitem__)
    fields = {
        "model": "flux2", "prompt": "a red fox", "neg": "", "width": 96, "height": 64, "requested_width": 96,
        "requested_height": 64, "seed": 3, "num_inference_steps": 3, "guidance_scale": 4.0, "adapters": (),
        "output_format": "png", "references": REFERENCES,
    }  # fmt: skip

    ours, theirs = (
        both.render(ItemSpec(**fields, engine=engine), [], on_progress=lambda _: None)
        for engine in ("exact", "ai-toolkit")
    )

    assert ours.image.tobytes() == theirs.image.tobytes()
    assert ours.references == theirs.references
