"""Load the language model that turns prompts into embeddings.

FLUX.2 reads three hidden states: [dev] those of Mistral Small 3.1, [klein] those of Qwen3. The folder's config.json
names the family, so any model id works with any folder of the right width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from shared.errors import CheckpointError
from worker.checkpoint.fill import fill, regions
from worker.checkpoint.locate import TextEncoderFiles
from worker.checkpoint.reader import Reader
from worker.checkpoint.tensor_files import TensorFiles
from worker.checkpoint.tensor_names import Origin
from worker.model.layer_streaming import LayerStreamer
from worker.model.placement import weight_bytes


@dataclass(frozen=True)
class TextEncoderFamily:
    """One family of language models, and the parts of it that FLUX.2 reads.

    Attributes:
        hidden_states: indices, where 0 is the token embedding and n the output of layer n.
        tokenizer_requirements: attributes that its tokenizer must have.
    """

    name: str
    hidden_states: tuple[int, ...]
    tokenizer_requirements: tuple[str, ...]


MISTRAL = TextEncoderFamily("mistral", (10, 20, 30), ("chat_template", "bos_token", "pad_token"))
QWEN = TextEncoderFamily("qwen", (9, 18, 27), ("chat_template", "pad_token"))

_EMBEDDING = "embed_tokens"
_HOST = torch.device("cpu")
_FAMILIES = {"mistral": MISTRAL, "qwen3": QWEN}  # by the text model's `model_type`


def family_of(config: Any) -> TextEncoderFamily:
    """Return the family that a model's configuration names.

    Raises:
        CheckpointError: no FLUX.2 reads that kind of model.
    """
    kind = config.get_text_config().model_type
    if kind not in _FAMILIES:
        raise CheckpointError(f"the text encoder is a {kind!r} model; FLUX.2 reads {sorted(_FAMILIES)}")
    return _FAMILIES[kind]


def load_text_encoder(
    source: TextEncoderFiles,
    *,
    device: torch.device,
    dtype: torch.dtype,
    to_be_quantised: bool = False,
    reader: Reader | None = None,
) -> nn.Module:
    """Return the decoder stack, cut after the last layer that is read.

    Raises:
        CheckpointError: a weight is missing, there are too few layers, or no FLUX.2 reads this kind of model.
    """
    model = _build_cut(source.folder, dtype=None if to_be_quantised else dtype)
    files = source.open()
    # AI Toolkit casts the whole module, including the rotary frequencies. In bfloat16 that turns the last of 512 tokens
    # by up to 0.4 radians (Mistral; Qwen3: 0.6), so float32 frequencies would not give a preview's embeddings. AI
    # Toolkit keeps them in float32 in one case only: a quantised Qwen3.
    if not (to_be_quantised and family_of(model.config) is QWEN):
        model.rotary_emb.to(dtype)
    fill(model, files, _origins(model, files), device=device, dtype=dtype, reject_unused=False, reader=reader)
    model.rotary_emb.to(device)
    return model  # type: ignore[no-any-return]


def load_streamed_text_encoder(
    source: TextEncoderFiles, *, device: torch.device, dtype: torch.dtype, reader: Reader
) -> nn.Module:
    """Return the decoder stack of `load_text_encoder`, with layers that are copied to the device when they run.

    The layers are copied from the files, or from host memory if the files store another dtype.

    Raises:
        CheckpointError: see `load_text_encoder`.
    """
    model, files = _build_cut(source.folder, dtype=dtype), source.open()
    origins = _origins(model, files)
    found = regions(model, files, origins, dtype=dtype)
    names = [
        [f"layers.{number}.{name}" for name, _ in layer.named_parameters()] for number, layer in enumerate(model.layers)
    ]
    if any(name not in found for layer in names for name in layer):
        model = load_text_encoder(source, device=_HOST, dtype=dtype)
        stream_from_host(model, device=device)
        return model
    model.rotary_emb.to(device, dtype)
    for name, part in model.named_children():
        if name != "layers":
            inside = {inner: origins[f"{name}.{inner}"] for inner in part.state_dict()}
            where, by = (_HOST, None) if name == _EMBEDDING else (device, reader)
            fill(part, files, inside, device=where, dtype=dtype, reject_unused=False, reader=by)
    _look_up_on_host(model.embed_tokens, device=device)
    # Allocates addresses only: nothing touches these pages.
    model.layers.to_empty(device="cpu")
    model.requires_grad_(False).eval()
    layer_regions = [[found[name] for name in layer] for layer in names]
    LayerStreamer(model.layers, device=device, regions=layer_regions, reader=reader)
    return model  # type: ignore[no-any-return]


def stream_from_host(text_encoder: Any, *, device: torch.device) -> None:
    """Move a text encoder from host memory to the device; its layers stay on the host, pinned, until they run."""
    LayerStreamer(text_encoder.layers, device=device)
    for name, part in text_encoder.named_children():
        if name not in ("layers", _EMBEDDING):
            part.to(device)
    _look_up_on_host(text_encoder.embed_tokens, device=device)


def _look_up_on_host(embedding: nn.Embedding, *, device: torch.device) -> None:
    """Look tokens up in host memory, and move their embeddings to the device."""
    # Mistral's table takes 1.3 GB, and a prompt needs 5 MB of it.
    embedding.register_forward_pre_hook(lambda _, inputs: tuple(ids.cpu() for ids in inputs))
    embedding.register_forward_hook(lambda _, __, found: found.to(device))


def build_text_encoder(config: Any) -> Any:
    """Return a decoder stack on the meta device, except for its rotary frequencies."""
    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    # Computed here, because no file holds the frequencies.
    model.rotary_emb = type(model.rotary_emb)(config=model.config)
    return model


def _build_cut(folder: Path, *, dtype: torch.dtype | None) -> Any:
    """Return a decoder stack on the meta device, cut after the last layer that is read."""
    config, layers = _read_config(folder)
    model = build_text_encoder(config.get_text_config())
    if layers > len(model.layers):
        # Transformers applies the norm to the last hidden state of a whole model; FLUX.2 reads the output of layer 30
        # of 40, or 27 of 36, without it.
        model.norm = nn.Identity()
    for name, part in model.named_children():
        if name != "rotary_emb":
            part.to(dtype)
    return model


def _origins(model: nn.Module, files: TensorFiles) -> dict[str, Origin]:
    prefix = _prefix(files)
    return {name: Origin(prefix + name) for name in model.state_dict()}


def _prefix(files: TensorFiles) -> str:
    """Return the prefix of the language model's tensors; the files may hold a vision tower too."""
    last = f"{_EMBEDDING}.weight"
    found = [name.removesuffix(last) for name in files.shapes if name.endswith(last)]
    if len(found) != 1:
        raise CheckpointError(f"{files.name}: {len(found)} tensors are called {last!r}; a language model has one")
    return found[0]


class TextSizes(NamedTuple):
    """Bytes of a loaded text encoder: all of it, its token table and one layer; and the number of layers."""

    whole: int
    embedding: int
    layer: int
    layers: int


def text_encoder_sizes(source: TextEncoderFiles, *, dtype: torch.dtype, float8: bool) -> TextSizes:
    """Return the bytes that a text encoder takes once it is loaded.

    Raises:
        CheckpointError: see `load_text_encoder`.
    """
    config, _ = _read_config(source.folder)
    model = build_text_encoder(config.get_text_config())

    def size(part: nn.Module, *, float8: bool) -> int:
        return weight_bytes((tuple(weight.shape) for weight in part.parameters()), dtype=dtype, float8=float8)

    embedding = size(model.embed_tokens, float8=False)  # quantising covers linear layers only
    whole = size(model, float8=float8) - size(model.embed_tokens, float8=float8) + embedding
    return TextSizes(whole, embedding, size(model.layers[0], float8=float8), len(model.layers))


def _read_config(folder: Path) -> tuple[Any, int]:
    """Return the configuration cut after the last layer that is read, and the original number of layers.

    Raises:
        CheckpointError: it cannot be read, has too few layers, or no FLUX.2 reads this kind of model.
    """
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the text encoder's configuration cannot be read: {error}") from error
    needed = max(family_of(config).hidden_states)
    text_config = config.get_text_config()
    layers: int = text_config.num_hidden_layers
    if layers < needed:
        raise CheckpointError(
            f"{folder}: the text encoder has {layers} layers, and {needed} are needed; check FLUX2_MODEL_TEXT_ENCODER"
        )
    # Later layers, a vision tower and the output head never run, so they do not reach the device (Mistral: 30 of 40
    # layers, 34.7 GB instead of 48 GB).
    text_config.num_hidden_layers = needed
    return config, layers
