"""Load the language model that turns prompts into embeddings, and its tokenizer.

FLUX.2 reads three hidden states: [dev] of Mistral Small 3.1, [klein] of Qwen3. The layers above the last of them, a
vision tower and the output head are never run, so they do not reach the device (Mistral: 30 of 40 layers, 34.7 GB
instead of 48 GB). The tokenizer is used without a processor, which would need torchvision and add nothing to text.
Which family a folder holds is read off its config.json, so any model id works with any folder that fits its widths.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from shared.errors import CheckpointError
from worker.checkpoint.fill import TensorFiles, fill, regions
from worker.checkpoint.reader import Reader
from worker.checkpoint.tensor_names import Origin
from worker.model.layer_streaming import LayerStreamer
from worker.model.placement import weight_bytes


@dataclass(frozen=True)
class Family:
    """How FLUX.2 reads one family of language models.

    Attributes:
        hidden_states: indices, where 0 is the token embedding and n the output of layer n.
        needs: what its tokenizer must have.
    """

    name: str
    hidden_states: tuple[int, ...]
    needs: tuple[str, ...]


MISTRAL = Family("mistral", (10, 20, 30), ("chat_template", "bos_token", "pad_token"))
QWEN = Family("qwen", (9, 18, 27), ("chat_template", "pad_token"))

_EMBEDDING = "embed_tokens"
_FAMILIES = {"mistral": MISTRAL, "qwen3": QWEN}  # by the text model's `model_type`


def family_of(config: Any) -> Family:
    """Return the family that a model's configuration names.

    Raises:
        CheckpointError: no FLUX.2 reads that kind of model.
    """
    kind = config.get_text_config().model_type
    if kind not in _FAMILIES:
        raise CheckpointError(f"the text encoder is a {kind!r} model; FLUX.2 reads {sorted(_FAMILIES)}")
    return _FAMILIES[kind]


def load_text_encoder(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    to_be_quantised: bool = False,
    reader: Reader | None = None,
) -> nn.Module:
    """Return the decoder stack of the model in `folder`, cut after the last layer that is read.

    Its rotary frequencies are rounded to `dtype` like the weights, because AI Toolkit casts the whole module. In
    bfloat16 that turns the last of 512 tokens by up to 0.4 radians (Mistral, 0.6 Qwen3), so embeddings with float32
    frequencies are not a preview's. Only a Qwen3 that is quantised keeps them in float32 there, and so it does here.

    Raises:
        CheckpointError: a weight is missing, there are too few layers, or it is no model that FLUX.2 reads.
    """
    model, files = _empty(folder, dtype=None if to_be_quantised else dtype)
    if not (to_be_quantised and family_of(model.config) is QWEN):
        model.rotary_emb.to(dtype)
    fill(model, files, _origins(model, files), device=device, dtype=dtype, alone=False, reader=reader)
    model.rotary_emb.to(device)
    return model  # type: ignore[no-any-return]


def load_streamed_text_encoder(folder: Path, *, device: torch.device, dtype: torch.dtype, reader: Reader) -> nn.Module:
    """Return the same, with layers that come to the device when they run: from the files, or if need be from the host.

    Raises:
        CheckpointError: see `load_text_encoder`.
    """
    model, files = _empty(folder, dtype=dtype)
    origins = _origins(model, files)
    found = regions(model, files, origins)
    names = [
        [f"layers.{number}.{name}" for name, _ in layer.named_parameters()] for number, layer in enumerate(model.layers)
    ]
    if any(name not in found for layer in names for name in layer):
        model = load_text_encoder(folder, device=torch.device("cpu"), dtype=dtype)
        stream_from_host(model, device=device)
        return model
    model.rotary_emb.to(device, dtype)
    for name, part in model.named_children():
        if name != "layers":
            inside = {inner: origins[f"{name}.{inner}"] for inner in part.state_dict()}
            where, by = (torch.device("cpu"), None) if name == _EMBEDDING else (device, reader)
            fill(part, files, inside, device=where, dtype=dtype, alone=False, reader=by)
    _look_up_on_host(model.embed_tokens, device=device)
    model.layers.to_empty(device="cpu")  # that touches no memory
    model.requires_grad_(False).eval()
    lie = [[found[name] for name in layer] for layer in names]
    LayerStreamer(model.layers, device=device, regions=lie, reader=reader)
    return model  # type: ignore[no-any-return]


def _empty(folder: Path, *, dtype: torch.dtype | None) -> tuple[Any, TensorFiles]:
    """Return a decoder stack on the meta device, cut after the last layer that is read, and its files."""
    config, layers = _read_config(folder)
    model = build_text_encoder(config.get_text_config())
    if layers > len(model.layers):
        # The last hidden state is normed; the one after layer 30 of 40, or 27 of 36, is not.
        model.norm = nn.Identity()
    for name, part in model.named_children():
        if name != "rotary_emb":
            part.to(dtype)
    return model, TensorFiles(text_encoder_files(folder))


def _origins(model: nn.Module, files: TensorFiles) -> dict[str, Origin]:
    prefix = _prefix(files)
    return {name: Origin(prefix + name) for name in model.state_dict()}


def build_text_encoder(config: Any) -> Any:
    """Return a decoder stack without memory; but for its rotary frequencies, in float32, since no file has them."""
    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    model.rotary_emb = type(model.rotary_emb)(config=model.config)
    return model


def text_encoder_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a transformers folder."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors",)
    try:
        return tuple(folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values())))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of weights") from error


def _prefix(files: TensorFiles) -> str:
    """Return what the language model's tensors are called before their own names: other parts lie beside it."""
    last = f"{_EMBEDDING}.weight"
    found = [name.removesuffix(last) for name in files.shapes if name.endswith(last)]
    if len(found) != 1:
        raise CheckpointError(f"{files.name}: {len(found)} tensors are called {last!r}; a language model has one")
    return found[0]


def stream_from_host(text_encoder: Any, *, device: torch.device) -> None:
    """Move a text encoder that lies on the host; leave its tokens there, and until they run its layers, locked."""
    LayerStreamer(text_encoder.layers, device=device)
    for name, part in text_encoder.named_children():
        if name not in ("layers", _EMBEDDING):
            part.to(device)
    _look_up_on_host(text_encoder.embed_tokens, device=device)


def _look_up_on_host(embedding: nn.Embedding, *, device: torch.device) -> None:
    """Let tokens be looked up where they lie: of the 1.3 GB that all of Mistral's take, a prompt needs 5 MB."""
    embedding.register_forward_pre_hook(lambda _, inputs: tuple(ids.cpu() for ids in inputs))
    embedding.register_forward_hook(lambda _, __, found: found.to(device))


class TextSizes(NamedTuple):
    """Bytes of a text encoder as it is loaded; see `worker.model.placement.WeightSizes`."""

    whole: int
    embedding: int
    layer: int
    layers: int


def text_encoder_sizes(folder: Path, *, dtype: torch.dtype, float8: bool) -> TextSizes:
    """Return what the text encoder in `folder` takes once loaded.

    Raises:
        CheckpointError: as `load_text_encoder`.
    """
    config, _ = _read_config(folder)
    model = build_text_encoder(config.get_text_config())

    def size(part: nn.Module, *, float8: bool) -> int:
        return weight_bytes((tuple(weight.shape) for weight in part.parameters()), dtype=dtype, float8=float8)

    embedding = size(model.embed_tokens, float8=False)  # only what is multiplied by is quantised
    whole = size(model, float8=float8) - size(model.embed_tokens, float8=float8) + embedding
    return TextSizes(whole, embedding, size(model.layers[0], float8=float8), len(model.layers))


def _read_config(folder: Path) -> tuple[Any, int]:
    """Return the configuration cut after the last layer that is read, and how many layers there were.

    Raises:
        CheckpointError: it cannot be read, has too few layers, or is no model that FLUX.2 reads.
    """
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the text encoder's configuration cannot be read: {error}") from error
    needed = max(family_of(config).hidden_states)
    text_config = config.get_text_config()
    layers: int = text_config.num_hidden_layers
    if layers < needed:
        raise CheckpointError(f"{folder}: the text encoder has {layers} layers, and {needed} are needed")
    text_config.num_hidden_layers = needed
    return config, layers


def load_tokenizer(folder: Path, *, family: Family = MISTRAL) -> PreTrainedTokenizerFast:
    """Return the tokenizer of tokenizer.json with its chat template, or the processor's.

    The class is named, not guessed: with mistral-common installed, AutoTokenizer would return another backend.

    Raises:
        CheckpointError: no usable tokenizer, or it lacks what the family needs.
    """
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
    old_template = folder / "chat_template.json"  # where processors kept it before chat_template.jinja
    if old_template.is_file() and not (folder / "chat_template.jinja").is_file():
        tokenizer.chat_template = json.loads(old_template.read_text())["chat_template"]
    for what in family.needs:
        if getattr(tokenizer, what) is None:
            raise CheckpointError(f"{folder}: the tokenizer has no {what}")
    return tokenizer


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing bars, and a table of the weights that are left out on purpose."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
