"""Derive the demonstration model's klein from its trained [dev]: a Qwen3 encoder, and a transformer without guidance.

The encoder learns to give the embeddings of [dev]'s Mistral. Both read the same tokens: the system message is part of
its chat template, and it pads on the left. The transformer keeps every weight but one.

    python -m tools.train_tiny.klein --out worker/model/demo_checkpoint --steps 1500
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.train_tiny.data import random_picture
from worker.checkpoint.locate import TextEncoderFiles
from worker.model.text_encoder import load_text_encoder
from worker.model.tokenizer import load_tokenizer

SHIPPED = Path(__file__).parents[2] / "worker" / "model" / "demo_checkpoint"
SCORED = Path(__file__).parents[2] / "benchmarks" / "tiny_prompts.json"

CPU = torch.device("cpu")
# Of the Mistral's 31 layers these have an effect, between the hidden states 0, 10, 20 and 30 that [dev] reads.
EFFECTIVE = (0, 1, 2, 10, 11, 20, 21)
# Each layer of the Qwen3 is a copy of this layer of the Mistral: klein reads the hidden states 9, 18 and 27.
SOURCES = (0, 1, 2, *range(3, 9), 10, 11, *range(12, 19), 20, 21, *range(22, 30))
HEAD = 32
_PLACEHOLDER = "a caption"
BATCH = 12
RATE = 1.5e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files that write_tiny_checkpoint reads")
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    bake_guidance(options.out / "klein_time_in.safetensors")
    train_encoder(options.out / "klein_text_encoder", steps=options.steps)


def bake_guidance(target: Path) -> None:
    """Write the last weight of the time embedding such that it adds the embedding of guidance 1.

    The layers have no biases. The 192 hidden values of all times span a constant, to 4e-5 of the result's size.
    """
    weights = {name: tensor.double() for name, tensor in load_file(SHIPPED / "flux2-dev.safetensors").items()}
    hidden = _hidden(weights["time_in.in_layer.weight"], torch.linspace(0, 1000, 4001))
    guidance = _hidden(weights["guidance_in.in_layer.weight"], torch.tensor([1000.0]))
    wanted = hidden @ weights["time_in.out_layer.weight"].T + guidance @ weights["guidance_in.out_layer.weight"].T
    damping = 1e-6 * hidden.square().mean() * len(hidden) * torch.eye(hidden.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(hidden.T @ hidden + damping, hidden.T @ wanted).T
    save_file({"time_in.out_layer.weight": solved.to(torch.bfloat16).contiguous()}, target)


def _hidden(weight: Tensor, times: Tensor) -> Tensor:
    embedded = get_timestep_embedding(times, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return nn.functional.silu(embedded.double() @ weight.T)


def train_encoder(folder: Path, *, steps: int) -> None:
    """Train the Qwen3 on random captions and write its folder."""
    teacher = load_text_encoder(TextEncoderFiles(SHIPPED / "text_encoder"), device=CPU, dtype=torch.float32)
    weights = write_untrained(folder)
    student = load_text_encoder(TextEncoderFiles(folder), device=CPU, dtype=torch.float32)
    captions = Captions(folder, seed=7)
    # Only layers with an effect, and one behind them: the last hidden state of a model has its norm applied.
    live = [SOURCES.index(number) for number in EFFECTIVE]
    taught, learner = shortened(teacher, [*EFFECTIVE, 22]), shortened(student, [*live, SOURCES.index(22)])
    calibrate(taught, learner, *captions.batch(8))
    trained = [student.embed_tokens.weight, *(part for number in live for part in student.layers[number].parameters())]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        ids, mask = captions.batch(BATCH)
        with torch.no_grad():
            wanted = embeddings(taught, ids, mask)[mask.bool()]
        loss = (embeddings(learner, ids, mask)[mask.bool()] - wanted).square().mean() / wanted.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"{step}: {loss.item():.5f}", flush=True)  # noqa: T201
    for name, tensor in student.state_dict().items():
        if name.startswith("embed_tokens") or any(name.startswith(f"layers.{number}.") for number in live):
            weights[f"model.{name}"] = tensor.to(torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_untrained(folder: Path) -> dict[str, Tensor]:
    """Write a Qwen3 with the Mistral's weights, tokenizer and chat; return its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    source = SHIPPED / "text_encoder"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    tokenizer: Any = load_tokenizer(source)
    text = tokenizer.apply_chat_template(format_input([_PLACEHOLDER])[0], add_generation_prompt=False, tokenize=False)
    before, after = (f"{{{{ {json.dumps(part)} }}}}" for part in text.split(_PLACEHOLDER))
    (folder / "chat_template.jinja").write_text(f"{before}{{{{ messages[0]['content'] }}}}{after}")
    old = load_file(source / "model.safetensors")
    prefix = "language_model.model."
    weights = {f"model.{name}": old[f"{prefix}{name}"] for name in ("embed_tokens.weight", "norm.weight")}
    for number, origin in enumerate(SOURCES):
        inside = f"{prefix}layers.{origin}."
        for name in (name for name in old if name.startswith(inside)):
            kept = origin in EFFECTIVE or "layernorm" in name
            weights[f"model.layers.{number}.{name.removeprefix(inside)}"] = old[name] if kept else old[name] * 0
        for part in "qk":
            weights[f"model.layers.{number}.self_attn.{part}_norm.weight"] = torch.ones(HEAD, dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    return weights


class Captions:
    """Random batches of captions as token ids and mask; none is among those that the model is scored on."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._tokenizer: Any = load_tokenizer(folder)
        self._random = random.Random(seed)
        self._scored = SCORED.read_text().lower()

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        texts = [
            self._tokenizer.apply_chat_template([{"role": "user", "content": self._caption()}], tokenize=False)
            for _ in range(size)
        ]
        encoded = self._tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    def _caption(self) -> str:
        # The negative prompt is empty by default.
        if self._random.random() < 0.03:
            return ""
        caption = random_picture(self._random).caption
        return caption if caption.lower() not in self._scored else self._caption()


def shortened(model: Any, layers: list[int]) -> Any:
    """Return a model of some of the layers, which it shares."""
    short = copy.copy(model)
    short._modules = {**model._modules, "layers": nn.ModuleList(model.layers[number] for number in layers)}
    short.config = copy.deepcopy(model.config)
    short.config.num_hidden_layers = len(layers)
    if getattr(short.config, "layer_types", None):
        short.config.layer_types = ["full_attention"] * len(layers)
    for number, layer in enumerate(short.layers):
        layer.self_attn.layer_idx = number
    return short


def embeddings(short: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the three hidden states that FLUX.2 reads, from a model of the layers with an effect."""
    states = short(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[3], states[5], states[7]], dim=-1)


@torch.no_grad()
def calibrate(taught: Any, learner: Any, ids: Tensor, mask: Tensor) -> None:
    """Set the Qwen3's norms of queries and keys to the mean size that these have in the Mistral."""
    sizes: dict[tuple[int, str], float] = {}

    def record(number: int, part: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
            heads = output.view(*output.shape[:-1], -1, HEAD)[mask.bool()]
            sizes[number, part] = float(heads.square().mean(-1).sqrt().mean())

        return hook

    hooks = [
        getattr(layer.self_attn, f"{part}_proj").register_forward_hook(record(number, part))
        for number, layer in enumerate(taught.layers)
        for part in "qk"
    ]
    embeddings(taught, ids, mask)
    for hook in hooks:
        hook.remove()
    for (number, part), size in sizes.items():
        getattr(learner.layers[number].self_attn, f"{part}_norm").weight.fill_(size)


CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "attention_bias": False,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 3,
    "num_hidden_layers": len(SOURCES),
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 1024,
}

if __name__ == "__main__":
    main()
