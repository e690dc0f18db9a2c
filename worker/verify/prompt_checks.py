"""The checks that start from a prompt: its token ids and embeddings, and the whole way from a prompt to pixels."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.catalog import MODELS
from shared.job import Engine as EngineName
from shared.job import ItemSpec
from shared.settings import ModelSettings
from worker.checkpoint.locate import TextEncoderFiles
from worker.model.load import load_components
from worker.model.precision import PRECISIONS
from worker.model.text_encoder import family_of, load_text_encoder
from worker.model.tokenizer import load_tokenizer
from worker.rendering.prompt_encoder import PromptEncoder, embed, tokenize
from worker.rendering.renderer import Renderer
from worker.verify.golden_models import MODEL_IDS, GoldenModels
from worker.verify.goldens import Case
from worker.verify.measures import Measure, equal, measure
from worker.verify.sampling import sample


def check_text(case: Case, models: GoldenModels) -> Iterator[Measure]:
    """Compare token ids, masks and embeddings (pad rows included) of single prompts and of batches."""
    entry, golden, folder = case.entry, models.goldens.tensors(case.entry["file"]), models.goldens.folder
    encoder = load_text_encoder(
        TextEncoderFiles(folder / entry["encoder"]), device=models.device, dtype=PRECISIONS[case.dtype].dtype
    )
    family = family_of(encoder.config)
    tokenizer = load_tokenizer(folder / entry["tokenizer"], family=family)
    encoded = [tokenize(tokenizer, prompt, family=family) for prompt in entry["prompts"]]
    tolerance = entry["tolerance"]["prompt_embeds"]
    for index, (ids, mask) in enumerate(encoded):
        yield equal(f"input_ids_{index}", ids.int(), golden[f"input_ids_{index}"])
        yield equal(f"attention_mask_{index}", mask.int(), golden[f"attention_mask_{index}"])
    for name, expected in golden.items():
        if name.startswith("prompt_embeds_"):
            chosen = [encoded[int(index)] for index in re.findall(r"\d+", name)]
            ids, mask = (torch.cat(tensors).to(models.device) for tensors in zip(*chosen, strict=True))
            yield from measure(name, embed(encoder, ids, mask), expected, tolerance)


def check_prompt_to_image(case: Case, models: GoldenModels) -> Iterator[Measure]:
    """Load a whole checkpoint as a worker does, render the case's prompt, and compare latents and pixels."""
    entry, golden, dtype = case.entry, models.goldens.tensors(case.entry["file"]), case.dtype
    with temporary_checkpoint(models, entry) as settings:
        components = load_components(
            settings.model_copy(update={"precision": dtype}), device=models.device, hf_token=None
        )
    components = models.with_stated_transformer(components, entry["model"])
    encoder = PromptEncoder(components.text_encoder, components.tokenizer, device=models.device, cache_size=2)
    embeds = encoder.encode(entry["prompt"]).embeds
    guided = not components.is_distilled and entry["guidance_scale"] > 1
    negative = encoder.encode(entry.get("negative_prompt", "")).embeds if guided else None
    yield from measure("prompt_embeds", embeds, golden[f"prompt_embeds_{dtype}"], {})
    latents = sample(models.engine(components), components, entry, embeds, negative_prompt_embeds=negative)
    yield from measure("latents", latents, golden[f"latents_{dtype}"], entry["tolerance"][f"latents_{dtype}"])
    renderer = Renderer(components, prompt_cache=1, toolkit=models.toolkit)
    # With a checkout the renderer offers `exact` and then `ai-toolkit`: the last engine is the one under test.
    rendered = renderer.render(_item(entry, engine=renderer.engines[-1]), [], on_progress=lambda _: None)
    image = torch.from_numpy(np.array(rendered.image))
    yield from measure("image_u8", image, golden[f"image_u8_{dtype}"], entry["tolerance"].get(f"image_u8_{dtype}", {}))


@contextmanager
def temporary_checkpoint(models: GoldenModels, entry: Mapping[str, Any]) -> Iterator[ModelSettings]:
    """Copy the goldens' weights into a temporary folder, under the names that a real checkpoint has."""
    goldens, model = models.goldens, MODELS[MODEL_IDS[entry["model"]]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(goldens.transformer(entry["model"]), folder / model.transformer_file)
        shutil.copy(goldens.autoencoder(), folder / model.autoencoder_file)
        text_encoder = folder / "text_encoder"
        shutil.copytree(goldens.folder / entry["encoder"], text_encoder)
        shutil.copytree(goldens.folder / entry["processor"], text_encoder, dirs_exist_ok=True)
        yield ModelSettings(
            id=model.id, path=str(folder), text_encoder=str(text_encoder), clean_weights="host", compile=False
        )


def _item(entry: Mapping[str, Any], *, engine: EngineName) -> ItemSpec:
    return ItemSpec(
        model=MODEL_IDS[entry["model"]],
        prompt=entry["prompt"],
        neg=entry.get("negative_prompt", ""),
        width=entry["width"],
        height=entry["height"],
        requested_width=entry["width"],
        requested_height=entry["height"],
        seed=entry["seed"],
        num_inference_steps=entry["num_inference_steps"],
        guidance_scale=entry["guidance_scale"],
        adapters=(),
        output_format="png",
        engine=engine,
    )
