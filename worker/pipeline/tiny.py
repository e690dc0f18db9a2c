"""Write a tiny FLUX.2: the real files' layout, names and dtypes, small enough to render on two CPU cores.

For demonstrations, tests and CI, where nothing may be downloaded. The weights are random but scaled as trained ones
are, so images are finite and varied, and adapters, multipliers, prompts and seeds change them. Every run writes the
same bytes, so the revision and the adapter's sha256 are the same everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from safetensors import safe_open
from torch import Tensor, nn

from shared.adapters.layout import PREFIX
from shared.catalog import FLUX2_DEV
from worker.pipeline import tiny_text
from worker.pipeline.bfl import Origin, autoencoder_origins, transformer_origins
from worker.pipeline.text_encoder import HIDDEN_STATES

_SEED = 2

_TRANSFORMER = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": len(HIDDEN_STATES) * tiny_text.WIDTH,
    "axes_dims_rope": (8, 8, 8, 8),
}
# How much more or less than unit size a layer gives.
_GAINS = {
    "time_in.in_layer.weight": 1.3,
    "time_in.out_layer.weight": 3.0,
    "guidance_in.in_layer.weight": 1.3,
    "guidance_in.out_layer.weight": 3.0,
    "final_layer.linear.weight": 3.0,  # more than the noise, so that the model and not the seed alone makes the image
    "decoder.conv_out.weight": 0.5,  # pixels within -1..1, mostly
}
_ATTENTION_GAIN = 3.0  # of queries and keys: attention that picks tokens, so that prompts count
_AUTOENCODER = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}


def write_tiny_checkpoint(folder: Path) -> None:
    """Write transformer and autoencoder as BFL single files, and `text_encoder/` as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        transformer: Any = Flux2Transformer2DModel(**_TRANSFORMER)  # type: ignore[no-untyped-call]
        autoencoder: Any = AutoencoderKLFlux2(**_AUTOENCODER)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(_SEED)
    weights = _random(_shapes(transformer, transformer_origins(transformer)), generator)
    safetensors.torch.save_file(weights, folder / FLUX2_DEV.transformer_file)
    weights = _random(_shapes(autoencoder, autoencoder_origins(autoencoder)), generator)
    safetensors.torch.save_file(_latent_statistics(weights, generator), folder / FLUX2_DEV.autoencoder_file)
    tiny_text.write_text_encoder(folder / "text_encoder", generator)


def write_matching_adapter(checkpoint: Path, target: Path, *, rank: int = 8, seed: int = 0) -> None:
    """Write a LoRA for the checkpoint in the folder `checkpoint`, with the keys and header that AI Toolkit writes.

    It updates every linear layer of the blocks by about half of the weight's size, which shows in any image.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    with safe_open(checkpoint / FLUX2_DEV.transformer_file, framework="pt") as file:
        for name in sorted(file.keys()):
            shape = file.get_slice(name).get_shape()
            if "_blocks." in name and len(shape) == 2:
                key = PREFIX + name.removesuffix(".weight")
                scale = math.sqrt(0.5 / math.sqrt(rank * shape[1]))  # of both factors, so that it counts twice
                for role, size in (("lora_A", (rank, shape[1])), ("lora_B", (shape[0], rank))):
                    tensors[f"{key}.{role}.weight"] = scale * torch.randn(size, generator=generator)
    metadata = {
        "format": "pt",
        "name": target.stem,
        "software": json.dumps({"name": "flux2-queue", "repo": "", "version": "tiny"}),
        "ss_base_model_version": FLUX2_DEV.id,
        "ss_output_name": target.stem,
        "training_info": json.dumps({"step": 0, "epoch": 0}),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save({key: value.bfloat16() for key, value in tensors.items()}, metadata=metadata)
    target.write_bytes(_with_sorted_metadata(data))


def _shapes(module: nn.Module, origins: Mapping[str, Origin]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of BFL's tensors, of which the module's entries are parts."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entry in module.state_dict().items():
        origin, size = origins[name], list(entry.shape)
        if origin.of > 1:
            size[0] = size[0] * origin.of // len(origin.parts)
        if ".attn_1." in origin.tensor and len(size) == 2:
            size += [1, 1]  # BFL's autoencoder attends with 1x1 convolutions
        shapes[origin.tensor] = tuple(size)
    return shapes


def _random(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Draw weights that keep activations near unit size from layer to layer, in bfloat16."""
    tensors: dict[str, Tensor] = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values *= _GAINS.get(name, 1.0) / math.sqrt(math.prod(shape[1:]))
            if name.endswith("_in.in_layer.weight"):
                values *= _slow_frequencies(shape[1])
        elif name.endswith(".bias"):
            values *= 0.1
        else:
            values = (_ATTENTION_GAIN if name.endswith(".scale") else 1.0) * (1 + 0.1 * values)
        tensors[name] = values.bfloat16()
    return tensors


def _slow_frequencies(channels: int) -> Tensor:
    """Keep the columns of a timestep embedding (cosines, then sines) that turn less than 0.02 radians per unit.

    Times reach 1000, where bfloat16 steps by 4: faster columns would make noise of the rounding, and images in
    bfloat16 and float32 would differ as much as with and without an adapter.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return (frequencies < 0.02).float().repeat(2)


def _latent_statistics(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Give the autoencoder the mean and variance by which latents are normalised."""
    channels = weights["bn.running_mean"].shape
    mean, spread = (torch.randn(channels, generator=generator) for _ in range(2))
    return weights | {
        "bn.running_mean": (0.2 * mean).bfloat16(),
        "bn.running_var": (0.3 * spread).exp().bfloat16(),
        "bn.num_batches_tracked": torch.tensor(1000),
    }


def _with_sorted_metadata(data: bytes) -> bytes:
    """Rewrite a safetensors file's header in a fixed order; the library's order of metadata is random."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
