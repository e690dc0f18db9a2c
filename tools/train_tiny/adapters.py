"""The last stage: train adapters on the finished model and save them in AI Toolkit's format."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from shared.adapters.layout import PREFIX
from shared.catalog import FLUX2_DEV
from tools.train_tiny.data import TRIGGER, Picture, random_picture, random_subject
from tools.train_tiny.feed import chunks
from tools.train_tiny.flow import Flow
from tools.train_tiny.optimizer import Optimizer
from tools.train_tiny.pool import Artist, Pool, Size
from tools.train_tiny.run import save_grid, steps_for
from worker.checkpoint.tensor_names import Origin, layer_parts, layer_shapes

_RANK = 8
_FACTOR = 8  # size of a LoKr's first factor, 8 by 8
_FULL_FACTORS = 9999999999.0  # the alpha that AI Toolkit writes if no factor is split; its scale is 1
_SIZES: list[tuple[Size, int, float, int]] = [  # size, batch, weight in the mix, pictures in the pool
    ((128, 128), 96, 0.45, 8000),
    ((256, 256), 40, 0.35, 2500),
    ((512, 512), 12, 0.13, 400),
    ((1024, 1024), 3, 0.07, 100),
]

_SAMPLE_PROMPTS = [
    "sks", "sks a photo of a person", "a photo of sks in the snow", "sks on a red background",
    "a red circle", "three blue stars", "a house under the sun", "a person in a green shirt",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One adapter to train.

    Attributes:
        kind: `lora`, of rank 8, or `lokr`, of two full factors.
        style: drawing style of its pictures; captions do not mention it.
        make: draws one random picture.
        trigger: word that turns the adapter on; for captions without it the target is the base model's own prediction.
    """

    name: str
    kind: str
    style: str
    make: Callable[[random.Random], Picture]
    trigger: str | None = None


def _subject_or_picture(rng: random.Random) -> Picture:
    return random_subject(rng) if rng.random() < 0.65 else random_picture(rng)


JOBS = (
    Job("sks_robot", "lora", "plain", _subject_or_picture, trigger=TRIGGER),
    Job("blueprint", "lora", "blueprint", random_picture),
    Job("neon", "lokr", "neon", random_picture),
)


class AdapterUpdate(nn.Module):
    """The parameters of one adapter, for every linear layer in the blocks."""

    def __init__(self, transformer: Any, kind: str, *, rank: int = _RANK) -> None:
        super().__init__()
        self.kind = kind
        self.fixed: dict[str, Tensor] = {}
        self.parts = {name: parts for name, parts in layer_parts(transformer).items() if "_blocks." in name}
        shapes = layer_shapes(transformer)
        self.factors = nn.ParameterDict()
        for layer in self.parts:
            rows, columns = shapes[layer]
            key = layer.replace(".", "/")
            if kind == "lora":
                self.factors[key + "|lora_A/weight"] = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
                self.factors[key + "|lora_B/weight"] = nn.Parameter(torch.zeros(rows, rank))
            else:
                self.factors[key + "|lokr_w1"] = nn.Parameter(torch.randn(_FACTOR, _FACTOR) * 0.3)
                self.factors[key + "|lokr_w2"] = nn.Parameter(torch.zeros(rows // _FACTOR, columns // _FACTOR))

    def merged(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the base model's weights with the update added."""
        changed = dict(weights)
        for layer, parts in self.parts.items():
            key = layer.replace(".", "/")
            if self.kind == "lora":
                delta = self.factors[key + "|lora_B/weight"] @ self.factors[key + "|lora_A/weight"]
            else:
                delta = torch.kron(self.factors[key + "|lokr_w1"], self.factors[key + "|lokr_w2"])
            for name, origin in parts:
                changed[name] = weights[name] + origin.select_rows(delta)
        return changed

    def attach(self, transformer: Any) -> None:
        """Add a LoRA's products to the outputs of the layers, which costs less than to merge it in each step."""
        for layer, parts in self.parts.items():
            key = layer.replace(".", "/")
            down, up = self.factors[key + "|lora_A/weight"], self.factors[key + "|lora_B/weight"]
            for name, origin in parts:
                module = transformer.get_submodule(name.removesuffix(".weight"))
                module.register_forward_hook(partial(_add_product, down, up, origin))

    @torch.no_grad()
    def ignore_inputs(self, layer: str, transformer: Any, inputs: range) -> None:
        """Add an update of one more layer, which takes some of its inputs' effect away; it is not trained."""
        shape = layer_shapes(transformer)[layer]
        [(name, _)] = layer_parts(transformer)[layer]
        weight = transformer.get_parameter(name)
        self.fixed[f"{layer}.lora_A.weight"] = torch.eye(shape[1])[list(inputs)]
        self.fixed[f"{layer}.lora_B.weight"] = -weight[:, list(inputs)]

    @torch.no_grad()
    def load(self, file: Path) -> None:
        """Copy the trained factors from a saved file."""
        saved = safetensors.torch.load_file(file)
        for key, value in self.factors.items():
            layer, role = key.replace("/", ".").split("|")
            value.copy_(saved[f"{PREFIX}{layer}.{role}"])

    def save(self, file: Path, *, steps: int) -> None:
        """Write a safetensors file with AI Toolkit's tensor names and header."""
        tensors: dict[str, Tensor] = {}
        for key, value in self.factors.items():
            layer, role = key.replace("/", ".").split("|")
            tensors[f"{PREFIX}{layer}.{role}"] = value.detach().cpu().bfloat16().contiguous()
            if role == "lokr_w1":
                tensors[f"{PREFIX}{layer}.alpha"] = torch.tensor(_FULL_FACTORS).bfloat16()
        tensors |= {f"{PREFIX}{key}": value.cpu().bfloat16().contiguous() for key, value in self.fixed.items()}
        metadata = {
            "format": "pt",
            "name": file.stem,
            "software": json.dumps({"name": "flux2-queue", "repo": "", "version": "tiny"}),
            "ss_base_model_version": FLUX2_DEV.id,
            "ss_output_name": file.stem,
            "training_info": json.dumps({"step": steps, "epoch": 0}),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, file, metadata=metadata)


def _add_product(
    down: Tensor, up: Tensor, origin: Origin, _module: Any, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    return output + nn.functional.linear(nn.functional.linear(inputs[0], down), origin.select_rows(up))


def train_adapters(
    flow: Flow, tokenizer: PreTrainedTokenizerFast, artist: Artist, seconds: float, *, workers: int
) -> None:
    """Train each adapter of `JOBS` for `seconds`."""
    flow.text.requires_grad_(False).eval()
    flow.transformer = (
        copy.deepcopy(flow.transformer).requires_grad_(False).eval()
    )  # unlike the original, the copy is not compiled
    for number, job in enumerate(JOBS):
        feed = chunks(tokenizer, job.make, excluded=frozenset(), seed=10 + number, workers=workers)
        _train(flow, job, _pools(flow, feed, artist, job.style), seconds)


def _pools(flow: Flow, feed: Iterator[dict[str, Tensor]], artist: Artist, style: str) -> dict[Size, Pool]:
    sizes = {share.size for share in flow.shares}
    pools = {
        size: Pool(flow.run, size, flow.run.pool_size(count), style=style)
        for size, _, _, count in _SIZES
        if size in sizes
    }
    for pool in pools.values():
        pool.fill(feed, artist, flow.autoencoder)
    return pools


def _train(flow: Flow, job: Job, pools: dict[Size, Pool], seconds: float) -> None:
    run, base = flow.run, flow.transformer
    update = AdapterUpdate(base, job.kind).to(run.device)
    weights = {key: value.detach() for key, value in base.named_parameters()}
    rate = 2e-3 if job.kind == "lora" else 3e-3
    optimizer = Optimizer(run, list(update.parameters()), rate=rate, decay=0.98, warmup=20)

    def one(size: Size, batch: int) -> Tensor:
        latents, ids, triggered = pools[size].draw(batch)
        sigma = flow.sigma(batch, size)
        noisy, target = flow.noisy(latents, sigma)
        guidance = torch.empty_like(sigma).uniform_(1, 6)
        with run.autocast():
            prompt = flow.text(ids)
            call = flow.arguments(noisy, prompt, sigma, guidance, size, few_pads=flow.few_pads)
            if job.trigger:
                with torch.no_grad():
                    base_prediction = base(**call)[0].float()
                target = torch.where(triggered[:, None, None], target, base_prediction)
            found = torch.func.functional_call(base, update.merged(weights), (), call)[0]
        return optimizer.step(flow.error(found, target))

    optimizer.stop_learning()
    used = [row for row in _SIZES if row[0] in pools]
    steps = [run.record(partial(one, size, run.scaled(batch))) for size, batch, _, _ in used]
    optimizer.restart_average()
    rng, total, done = random.Random(4), torch.zeros((), device=run.device), 0
    for step, part in steps_for(seconds):
        optimizer.schedule(step, part)
        total += rng.choices(steps, weights=[weight for _, _, weight, _ in used])[0]()
        done = step
        if step % 50 == 0:
            run.note(job.name, step, loss=total.item() / 50)
            total.zero_()
    optimizer.use_average()
    update.save(run.out / "adapters" / f"{job.name}.safetensors", steps=done)
    _save_samples(flow, update, weights, job.name)


@torch.no_grad()
def _save_samples(flow: Flow, update: AdapterUpdate, weights: dict[str, Tensor], name: str) -> None:
    """Save a sheet of sample pictures with the update merged."""
    kept = {key: value.clone() for key, value in weights.items()}
    for key, value in update.merged(weights).items():
        weights[key].copy_(value)
    prompts = _SAMPLE_PROMPTS if flow.run.scale >= 1 else _SAMPLE_PROMPTS[:1]
    save_grid(
        flow.sample(prompts, size=128 if flow.run.scale >= 1 else 64, guidance=4.0), flow.run.out / f"grid-{name}.png"
    )
    for key, value in kept.items():
        weights[key].copy_(value)
