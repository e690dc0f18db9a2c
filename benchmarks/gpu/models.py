"""Build a FLUX.2 of full size, or a tiny one, with random weights, by the product's own loader.

Only the tensors' source differs from a checkpoint: they are drawn on the device when the loader reads them.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import MistralConfig, PreTrainedTokenizerFast, Qwen3Config

from shared.adapters.names import PREFIX
from worker.pipeline.bfl import Origin, autoencoder_origins, layer_shapes, transformer_origins
from worker.pipeline.components import Components
from worker.pipeline.load import load_autoencoder, load_transformer
from worker.pipeline.placement import (
    CleanPlace,
    Needs,
    TextEncoderPlace,
    adapted_bytes,
    explain,
    free_bytes,
    place,
    weight_bytes,
)
from worker.pipeline.source import Layout
from worker.pipeline.text_encoder import build_text_encoder, family_of, size_of_config, stream

_DTYPE = torch.bfloat16
_STD = 0.02
_RANK = 16

# Arguments of diffusers' Flux2Transformer2DModel, whose defaults are [dev]'s. Klein's are Klein4BParams and
# Klein9BParams in AI Toolkit's extensions_built_in/diffusion_models/flux2/src/model.py.
_FULL: dict[str, dict[str, Any]] = {
    "flux2": {},
    "flux2_klein_4b": {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    "flux2_klein_9b": {
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12288,
        "guidance_embeds": False,
    },
}
_TINY: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 4, 4, 4),
    "joint_attention_dim": 96,
}
_TINY_AUTOENCODER = {"block_out_channels": (32, 32, 32, 32)}

# The language models of Mistral-Small-3.1-24B, Qwen3-4B and Qwen3-8B, up to the last layer that is read.
_TEXT: dict[str, dict[str, Any]] = {
    "flux2": {"hidden_size": 5120, "intermediate_size": 32768, "vocab_size": 131072},
    "flux2_klein_4b": {"hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151936},
    "flux2_klein_9b": {"hidden_size": 4096, "intermediate_size": 12288, "vocab_size": 151936},
}
_TEXT_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


class RandomTensors:
    """Tensors of BFL's names and of the shapes that a module takes, drawn from N(0, 0.02); norms scale by one.

    Each is drawn from a generator of its own, so all reads of a name give the same values.

    Args:
        module: of diffusers' class, on the meta device.
    """

    def __init__(self, name: str, module: nn.Module, origins: Mapping[str, Origin], *, device: torch.device) -> None:
        self.name = name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._device = device
        for parameter, empty in module.state_dict().items():
            if empty.is_floating_point():
                origin, (rows, *rest) = origins[parameter], empty.shape
                # Equal parts of one BFL tensor; their number says how high the whole is.
                self.shapes[origin.tensor] = (rows * origin.of // len(origin.parts), *rest)

    def read(self, name: str) -> Tensor:
        """Draw a tensor on the device."""
        return _random(name, self.shapes[name], device=self._device)

    def region(self, name: str, dtype: torch.dtype) -> None:
        """No file has them."""


@dataclass(frozen=True)
class RandomSource:
    """Where the loader reads random tensors from."""

    tensors: RandomTensors
    layout: Layout = "bfl"
    config: Path | None = None

    def open(self) -> RandomTensors:
        """Return the tensors, none of them drawn yet."""
        return self.tensors


@dataclass(frozen=True)
class Built:
    """A model, and the seconds and bytes of building and filling each of its parts."""

    components: Components
    seconds: dict[str, float]
    sizes: dict[str, int]


def build(
    model: str,
    *,
    tiny: bool,
    device: torch.device,
    text_encoder: TextEncoderPlace | None = None,
    clean: CleanPlace | None = None,
) -> Built:
    """Build a model of the catalogue in bfloat16.

    Args:
        text_encoder, clean: where they are to lie, if that is not left to `worker.pipeline.placement`.

    Raises:
        CheckpointError: the device is too small.
    """
    transformer, autoencoder = _sources(model, tiny=tiny, device=device)
    config = _text_config(model, tiny=tiny)
    whole, layer, layers = size_of_config(config, dtype=_DTYPE, float8=False)
    shapes = transformer.tensors.shapes
    needs = Needs(
        transformer=weight_bytes(shapes.values(), dtype=_DTYPE, float8=False),
        autoencoder=weight_bytes(autoencoder.tensors.shapes.values(), dtype=_DTYPE, float8=False),
        text_encoder=whole,
        text_layer=layer,
        text_layers=layers,
        adapted=adapted_bytes(shapes, dtype=_DTYPE),
    )
    free = free_bytes(device, limit_gb=None)
    placement = place(needs, free=free, text_encoder=text_encoder, clean=clean)
    if placement is None:
        assert free is not None
        raise explain(needs, free=free, model=model, precision="bf16", device=str(device), float8=None)
    if placement.clean == "file":
        placement = replace(placement, clean="host")  # no file has the weights, so they are copied
    timer = _Timer(device)
    with timer.part("transformer"):
        made = load_transformer(transformer, device=device, dtype=_DTYPE)
    with timer.part("autoencoder"):
        decoder = load_autoencoder(autoencoder, device=device, dtype=_DTYPE)
    streamed = placement.text_encoder == "streamed"
    with timer.part("text encoder"):
        encoder = _text_encoder(config, device=device, lies_on=torch.device("cpu") if streamed else device)
        if streamed:
            stream(encoder, device=device)
    components = Components(
        model=model,
        transformer=made,
        autoencoder=decoder,
        text_encoder=encoder,
        tokenizer=_tokenizer(),
        layers=layer_shapes(made),
        revision="random weights",
        precision="bf16",
        device=device,
        placement=placement,
        regions={},
    )
    sizes = {"transformer": needs.transformer, "autoencoder": needs.autoencoder, "text encoder": needs.text_encoder}
    return Built(components, timer.seconds, sizes)


def write_adapter(target: Path, components: Components) -> None:
    """Write a LoRA of rank 16 for every linear layer in the blocks, as AI Toolkit names and stores it.

    Its values depend on the file's name.
    """
    tensors: dict[str, Tensor] = {}
    for layer, (rows, columns) in components.layers.items():
        if "_blocks." in layer:
            for half, shape in (("A", (_RANK, columns)), ("B", (rows, _RANK))):
                seed = f"{target.name} {layer} {half}"
                drawn = _random(seed, shape, device=components.device)
                tensors[f"{PREFIX}{layer}.lora_{half}.weight"] = drawn.cpu()
    save_file(tensors, target, metadata={"format": "pt", "ss_base_model_version": components.model})


class _Timer:
    """Measures parts of the building until the device is done with each."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] = time.perf_counter() - began


def _sources(model: str, *, tiny: bool, device: torch.device) -> tuple[RandomSource, RandomSource]:
    sizes = {**_TINY, "guidance_embeds": model == "flux2"} if tiny else _FULL[model]
    with torch.device("meta"):
        transformer: Any = Flux2Transformer2DModel(**sizes)  # type: ignore[no-untyped-call]
        autoencoder: Any = AutoencoderKLFlux2(**(_TINY_AUTOENCODER if tiny else {}))  # type: ignore[no-untyped-call]
    return (
        RandomSource(RandomTensors("random", transformer, transformer_origins(transformer), device=device)),
        RandomSource(RandomTensors("random", autoencoder, autoencoder_origins(autoencoder), device=device)),
    )


def _text_config(model: str, *, tiny: bool) -> Any:
    kind: Any = MistralConfig if model == "flux2" else Qwen3Config
    sizes = _TINY_TEXT if tiny else {**_TEXT[model], **_TEXT_HEADS}
    config = kind(**sizes)
    config.num_hidden_layers = max(family_of(config).hidden_states)
    return config


def _text_encoder(config: Any, *, device: torch.device, lies_on: torch.device) -> nn.Module:
    """Return a decoder stack as `worker.pipeline.text_encoder.load_text_encoder` leaves it; drawn on `device`."""
    model = build_text_encoder(config)
    for name, empty in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        drawn = _random(name, tuple(empty.shape), device=device).to(lies_on)
        setattr(model.get_submodule(path), leaf, nn.Parameter(drawn, requires_grad=False))
    model.norm = nn.Identity()
    model.rotary_emb.to(lies_on, _DTYPE)
    encoder: nn.Module = model.eval()
    return encoder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows no word: prompts become unknown tokens and padding."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    vocabulary = WordLevel({token: number for number, token in enumerate(special.values())}, unk_token="<unk>")
    kind: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = kind(tokenizer_object=Tokenizer(vocabulary), **special)
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _random(name: str, shape: tuple[int, ...], *, device: torch.device) -> Tensor:
    scales = ("norm" in name and name.endswith((".scale", ".weight"))) or name.endswith("running_var")
    if scales and len(shape) == 1:
        return torch.ones(shape, dtype=_DTYPE, device=device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, dtype=_DTYPE, device=device).normal_(0, _STD, generator=generator)
