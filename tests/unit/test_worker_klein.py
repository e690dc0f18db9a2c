"""FLUX.2 [klein]: Qwen3 prompts and classifier-free guidance, compared with the results of ai-toolkit's own code."""

import hashlib
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.catalog import MODELS
from shared.errors import AdapterRefused, CheckpointError
from shared.settings import ModelSettings, Settings
from worker.checkpoint.locate import TextEncoderFiles, locate_checkpoint
from worker.model.load import load_components
from worker.model.text_encoder import QWEN, load_text_encoder
from worker.model.tokenizer import load_tokenizer
from worker.rendering.decode import decode, to_image
from worker.rendering.denoise import denoise, distilled_velocity, guided_velocity
from worker.rendering.latents import image_ids, noise, pack, text_ids, unpack
from worker.rendering.prompt_encoder import embed, tokenize
from worker.rendering.renderer import Renderer
from worker.rendering.sigmas import sigmas

CPU = torch.device("cpu")
SAMPLING = [
    "klein_s64_4st_cfg4_fp32",
    "klein_s96x128_4st_g1_nocfg_fp32",
    "klein_s128x128_20st_cfg4_fp32",
    "klein_s64_4st_cfg4_bf16",
]


@pytest.fixture(scope="module")
def folder(goldens, tmp_path_factory):
    """The goldens' klein under the names of the 4B's files."""
    folder = tmp_path_factory.mktemp("klein")
    shutil.copy(goldens / "weights/flux2_klein_tiny.safetensors", folder / "flux-2-klein-base-4b.safetensors")
    shutil.copy(goldens / "weights/ae_tiny.safetensors", folder / "ae.safetensors")
    shutil.copytree(goldens / "text/qwen3_tiny", folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def klein(folder):
    """Klein in a precision, loaded once each."""
    loaded = {}

    def load(precision):
        if precision not in loaded:
            settings = ModelSettings(
                id="flux2_klein_4b", path=str(folder), text_encoder=str(folder / "text_encoder"), precision=precision
            )
            loaded[precision] = load_components(settings, device=CPU, hf_token=None)
        return loaded[precision]

    return load


@pytest.fixture
def klein_item(item):
    """An accepted klein item of 64x64 in two steps."""
    return lambda **changes: item(model="flux2_klein_4b", **changes)


@torch.no_grad()
def sample(transformer, run, prompt_embeds, negative_embeds=None, wrap=lambda velocity: velocity):
    """Denoise given embeddings to latents; the loop is the one that dev's goldens hold."""
    rows, columns = run["height"] // 16, run["width"] // 16
    start = noise(run["seed"], channels=128, height=run["height"], width=run["width"], dtype=prompt_embeds.dtype)

    def velocity(embeds):
        return wrap(
            distilled_velocity(
                transformer,
                prompt_embeds=embeds,
                img_ids=image_ids(rows, columns),
                txt_ids=text_ids(embeds.shape[1]),
                guidance_scale=run["guidance_scale"],
            )
        )

    chosen = velocity(prompt_embeds)
    if negative_embeds is not None:
        chosen = guided_velocity(chosen, velocity(negative_embeds), guidance_scale=run["guidance_scale"])
    tokens = denoise(chosen, pack(start), sigmas(run["num_inference_steps"], rows * columns), on_step=lambda *_: None)
    return unpack(tokens, rows=rows, columns=columns)


def pixels(image):
    return np.asarray(image).astype(int)


def ignore(progress):
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_forward_pass_equals_ai_toolkits(precision, klein, goldens, cases, assert_close):
    (case,) = cases(type="forward", model="klein", dtype=precision)
    golden = load_file(goldens / case["file"])

    with torch.no_grad():
        prediction = klein(precision).transformer(
            hidden_states=golden["x"],
            encoder_hidden_states=golden["ctx"],
            timestep=golden["timesteps"],
            img_ids=golden["x_ids"],
            txt_ids=golden["ctx_ids"],
            guidance=golden["guidance"],
            return_dict=False,
        )[0]

    assert_close(prediction, golden["pred"], case["tolerance"])


@pytest.mark.parametrize("name", SAMPLING)
def test_a_rendering_equals_ai_toolkits(name, klein, goldens, cases, assert_close):
    (case,) = cases(type="sampling", name=name)
    golden = load_file(goldens / case["file"])
    model, timesteps = klein(case["dtype"]), []
    negative = golden["negative_prompt_embeds"] if case["true_cfg"] else None

    def recorded(velocity):
        return lambda latents, timestep: timesteps.append(timestep) or velocity(latents, timestep)

    latents = sample(model.transformer, case, golden["prompt_embeds"], negative, wrap=recorded)
    with torch.no_grad():
        decoded = decode(model.autoencoder, latents)

    assert torch.equal(torch.stack(timesteps), golden["timesteps_model"])
    assert_close(latents, golden["latents"], case["tolerance"]["latents"])
    assert_close(decoded, golden["decoded"].float(), case["tolerance"]["decoded"])
    difference = np.abs(pixels(to_image(decoded[0])) - golden["image_u8"].numpy().astype(int))
    tolerance = case["tolerance"]["image_u8"]
    assert difference.max() <= tolerance.get("max_diff", 255)
    assert difference.mean() <= tolerance.get("mean_diff", 255)


def test_guidance_extrapolates_from_the_negative_prediction_past_the_positive_one():
    velocity = guided_velocity(lambda *_: torch.tensor(3.0), lambda *_: torch.tensor(1.0), guidance_scale=4.0)

    # 1 + 4 * (3 - 1)
    assert velocity(torch.zeros(1), torch.zeros(1)) == 9.0


def test_prompts_become_the_trainers_ids_and_embeddings(klein, goldens, cases, assert_close):
    (case,) = cases(type="text", name="qwen")
    golden, model = load_file(goldens / case["file"]), klein("fp32")

    for index, prompt in enumerate(case["prompts"]):
        ids, mask = tokenize(model.tokenizer, prompt, family=QWEN)
        with torch.no_grad():
            embeds = embed(model.text_encoder, ids, mask)

        assert torch.equal(ids.int(), golden[f"input_ids_{index}"])
        assert torch.equal(mask.int(), golden[f"attention_mask_{index}"])
        assert_close(embeds, golden[f"prompt_embeds_{index}"], case["tolerance"]["prompt_embeds"])


def test_layers_above_the_last_that_is_read_are_not_loaded(klein):
    assert len(klein("fp32").text_encoder.layers) == 27  # of 30 in the folder


def test_an_item_is_rendered_with_guidance_from_the_empty_prompt(klein, klein_item, goldens):
    model, spec = klein("fp32"), klein_item()
    text = load_file(goldens / "text/qwen.safetensors")  # prompt 0 is the item's, prompt 1 the empty one
    latents = sample(model.transformer, spec.model_dump(), text["prompt_embeds_0"], text["prompt_embeds_1"])
    with torch.no_grad():
        expected = pixels(to_image(decode(model.autoencoder, latents)[0]))

    rendered = Renderer(model, prompt_cache=4).render(spec, [], on_progress=ignore)

    assert np.abs(pixels(rendered.image) - expected).max() <= 1


def test_the_negative_prompt_changes_the_image_while_guidance_is_above_one(klein, klein_item):
    renderer = Renderer(klein("bf16"), prompt_cache=4)

    def image(**changes):
        return renderer.render(klein_item(**changes), [], on_progress=ignore).image.tobytes()

    assert image(guidance_scale=4.0, neg="blurry") != image(guidance_scale=4.0)
    assert image(guidance_scale=1.0, neg="blurry") == image(guidance_scale=1.0)
    assert image(guidance_scale=1.0) == image(guidance_scale=0.5)


@pytest.mark.parametrize(("guidance_scale", "passes"), [(4.0, 6), (1.0, 3)])
def test_guidance_takes_a_second_pass_each_step_and_one_report(guidance_scale, passes, klein, klein_item):
    model, runs, seen = klein("bf16"), [], []
    handle = model.transformer.register_forward_hook(lambda *_: runs.append(1))

    spec = klein_item(num_inference_steps=3, guidance_scale=guidance_scale)
    Renderer(model, prompt_cache=4).render(spec, [], on_progress=seen.append)
    handle.remove()

    assert len(runs) == passes
    assert [progress.step for progress in seen if progress.stage == "denoise"] == [0, 1, 2, 3]


@pytest.fixture
def distilled(folder, tmp_path):
    """Settings of the distilled 4B: the same weights in diffusers' layout, as its repository's folder has them."""

    def write(**index):
        model = load_components(
            ModelSettings(
                id="flux2_klein_4b", path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp32"
            ),
            device=CPU,
            hf_token=None,
        )
        model.transformer.save_pretrained(tmp_path / "transformer")
        model.autoencoder.save_pretrained(tmp_path / "vae")
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline", **index}))
        return ModelSettings(
            id="flux2_klein_4b_distilled",
            path=str(tmp_path),
            text_encoder=str(folder / "text_encoder"),
            precision="fp32",
        )

    return write


@pytest.mark.parametrize("index", [{"is_distilled": True}, {}])
def test_a_distilled_items_defaults_take_one_pass_a_step_and_follow_the_trainers_formula(
    index, distilled, item, goldens
):
    settings = distilled(**index)
    model, runs = load_components(settings, device=CPU, hf_token=None), []
    entry = MODELS[settings.id]
    spec = item(
        model=entry.id, num_inference_steps=entry.default_steps, guidance_scale=entry.default_guidance_scale, neg="dull"
    )
    prompt_embeds = load_file(goldens / "text/qwen.safetensors")["prompt_embeds_0"]  # the item's prompt
    with torch.no_grad():
        # The trainer's loop without its second pass.
        latents = pack(noise(spec.seed, channels=128, height=64, width=64, dtype=torch.float32))
        for sigma, following in itertools.pairwise(sigmas(4, 16)):
            prediction = model.transformer(
                hidden_states=latents,
                encoder_hidden_states=prompt_embeds,
                timestep=torch.full((1,), sigma),
                img_ids=image_ids(4, 4),
                txt_ids=text_ids(prompt_embeds.shape[1]),
                guidance=None,
                return_dict=False,
            )[0]
            latents = latents + (following - sigma) * prediction
        expected = pixels(to_image(decode(model.autoencoder, unpack(latents, rows=4, columns=4))[0]))

    with model.transformer.register_forward_hook(lambda *_: runs.append(1)):
        rendered = Renderer(model, prompt_cache=4).render(spec, [], on_progress=ignore)

    assert len(runs) == 4
    assert np.abs(pixels(rendered.image) - expected).max() <= 1


def test_a_distilled_folder_is_not_loaded_as_the_base_model_nor_a_base_folder_as_the_distilled_one(distilled):
    as_base = distilled(is_distilled=True).model_copy(update={"id": "flux2_klein_4b"})
    with pytest.raises(
        CheckpointError, match=r"is_distilled true, so it is flux2_klein_4b_distilled, not flux2_klein_4b"
    ):
        load_components(as_base, device=CPU, hf_token=None)

    as_distilled = distilled(is_distilled=False)
    with pytest.raises(CheckpointError, match=r"is_distilled false, so it is flux2_klein_4b, not"):
        load_components(as_distilled, device=CPU, hf_token=None)


def test_an_image_token_is_plain_text_to_qwen(klein, klein_item):
    rendered = Renderer(klein("bf16"), prompt_cache=4).render(klein_item(prompt="[IM[IMG]G]"), [], on_progress=ignore)

    assert rendered.image.size == (64, 64)


@pytest.fixture
def adapter(klein, tmp_path):
    """A LoRA of one layer."""
    model = klein("bf16")
    out_features, in_features = model.layers["single_blocks.0.linear2"]
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "klein.safetensors"
    key = "diffusion_model.single_blocks.0.linear2"
    tensors = {
        f"{key}.lora_A.weight": torch.randn(2, in_features, generator=generator),
        f"{key}.lora_B.weight": torch.randn(out_features, 2, generator=generator),
    }
    save_file(tensors, path, metadata={"ss_base_model_version": "flux2_klein_4b"})
    return path


def test_an_adapter_is_merged_into_klein_as_into_dev(klein, klein_item, adapter, adapter_ref):
    renderer = Renderer(klein("bf16"), prompt_cache=4)
    base = renderer.render(klein_item(), [], on_progress=ignore)

    changed = renderer.render(klein_item(adapters=(adapter_ref(adapter),)), [adapter], on_progress=ignore)
    again = renderer.render(klein_item(), [], on_progress=ignore)

    assert changed.adapters[0].layers_touched == 1
    assert changed.image.tobytes() != base.image.tobytes()
    assert again.image.tobytes() == base.image.tobytes()


def test_a_worker_merges_an_adapter_of_the_base_model_into_the_distilled_one_and_not_the_reverse(
    klein, item, adapter, adapter_ref
):
    changes = {"model": "flux2_klein_4b_distilled", "num_inference_steps": 4, "guidance_scale": 1.0}
    distilled = Renderer(replace(klein("bf16"), model="flux2_klein_4b_distilled"), prompt_cache=4)
    plain = distilled.render(item(**changes), [], on_progress=ignore)

    changed = distilled.render(item(**changes, adapters=(adapter_ref(adapter),)), [adapter], on_progress=ignore)
    distilled.render(item(**changes), [], on_progress=ignore)  # restores the weights, which other tests share

    assert changed.adapters[0].layers_touched == 1
    assert changed.image.tobytes() != plain.image.tobytes()

    save_file(load_file(adapter), adapter, metadata={"ss_base_model_version": "flux2_klein_4b_distilled"})
    on_base = item(model="flux2_klein_4b", adapters=(adapter_ref(adapter),))
    with pytest.raises(AdapterRefused, match=r"trained on 'flux2_klein_4b_distilled' .* request the model"):
        Renderer(klein("bf16"), prompt_cache=4).render(on_base, [adapter], on_progress=ignore)


def test_both_passes_of_the_last_step_come_before_the_next_adapter(klein, klein_item, adapter, adapter_ref):
    renderer = Renderer(klein("bf16"), prompt_cache=4)
    coming = klein_item(adapters=(adapter_ref(adapter),))
    base = renderer.render(klein_item(), [], on_progress=ignore)
    changed = renderer.render(coming, [adapter], on_progress=ignore)

    renderer.render(klein_item(), [], on_progress=ignore)
    renderer.prepare(coming, [adapter])
    again = renderer.render(klein_item(), [], on_progress=ignore)
    key = renderer.warm_key

    assert key == coming.adapter_key
    assert again.image.tobytes() == base.image.tobytes()
    assert renderer.render(coming, [adapter], on_progress=ignore).image.tobytes() == changed.image.tobytes()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An offline hub cache; repositories are put there by name, with links to files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repository, *files, revision="main"):
        commit = hashlib.sha1(repository.encode(), usedforsecurity=False).hexdigest()
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / revision).write_text(commit)
        (root / "snapshots" / commit).mkdir(parents=True)
        for file in files:
            (root / "snapshots" / commit / file.name).symlink_to(file)
        return root / "snapshots" / commit

    return put


def test_the_default_path_and_text_encoder_follow_the_model_id(folder, hub, monkeypatch):
    transformer = hub(
        "black-forest-labs/FLUX.2-klein-base-4B", folder / "flux-2-klein-base-4b.safetensors", revision="v1"
    )
    autoencoder = hub("ai-toolkit/flux2_vae", folder / "ae.safetensors")
    text_encoder = hub("Qwen/Qwen3-4B", *(folder / "text_encoder").iterdir())
    monkeypatch.setenv("FLUX2_MODEL_ID", "flux2_klein_4b")
    monkeypatch.setenv("FLUX2_MODEL_REVISION", "v1")  # of the transformer's repository only

    source = locate_checkpoint(Settings().model, hf_token=None)

    assert source.transformer.weights == (transformer / "flux-2-klein-base-4b.safetensors",)
    assert source.autoencoder.weights == (autoencoder / "ae.safetensors",)
    assert source.text_encoder.folder == text_encoder
    assert source.commit == transformer.name


def test_an_autoencoder_in_the_transformers_folder_is_used(folder):
    settings = ModelSettings(id="flux2_klein_4b", path=str(folder), text_encoder=str(folder / "text_encoder"))

    source = locate_checkpoint(settings, hf_token=None)

    assert source.autoencoder.weights == (folder / "ae.safetensors",)


def test_a_folder_without_an_autoencoder_uses_the_catalogues(folder, hub, tmp_path):
    shutil.copy(folder / "flux-2-klein-base-4b.safetensors", tmp_path)
    autoencoder = hub("ai-toolkit/flux2_vae", folder / "ae.safetensors")
    settings = ModelSettings(id="flux2_klein_4b", path=str(tmp_path), text_encoder=str(folder / "text_encoder"))

    source = locate_checkpoint(settings, hf_token=None)

    assert source.autoencoder.weights == (autoencoder / "ae.safetensors",)


@pytest.mark.parametrize("model", ["flux2_klein_4b", "flux2_klein_9b"])
def test_the_shapes_of_the_real_models_agree_with_their_text_encoders(model):
    # Widths from ai-toolkit's Klein4BParams and Klein9BParams, and from the configurations of Qwen3-4B and Qwen3-8B.
    context, hidden = {"flux2_klein_4b": (7680, 2560), "flux2_klein_9b": (12_288, 4096)}[model]

    assert len(QWEN.hidden_states) * hidden == context
    assert MODELS[model].uses_negative_prompt


def test_weights_without_a_guidance_embedder_are_not_served_as_dev(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "flux-2-klein-base-4b.safetensors").rename(tmp_path / "flux2-dev.safetensors")
    settings = ModelSettings(path=str(tmp_path), text_encoder=str(tmp_path / "text_encoder"))

    with pytest.raises(CheckpointError, match=r"has no guidance embedder, so it is not 'flux2'"):
        load_components(settings, device=CPU, hf_token=None)


def test_a_text_encoder_that_no_flux2_reads_is_refused(goldens, tmp_path):
    shutil.copytree(goldens / "text/qwen3_tiny", tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"model_type": "qwen3"', '"model_type": "qwen2"'))

    with pytest.raises(CheckpointError, match=r"'qwen2' model; FLUX.2 reads \['mistral', 'qwen3'\]"):
        load_text_encoder(TextEncoderFiles(tmp_path), device=CPU, dtype=torch.float32)


def test_a_tokenizer_without_a_first_token_is_enough_for_qwen_only(goldens):
    assert load_tokenizer(goldens / "text/qwen3_tiny", family=QWEN).bos_token is None
    with pytest.raises(CheckpointError, match="bos_token"):
        load_tokenizer(goldens / "text/qwen3_tiny")
