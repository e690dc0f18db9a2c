"""Write a full-size or tiny FLUX.2 with random weights, as checkpoint files that a worker can load."""

from __future__ import annotations

import json
import math
import os
import tempfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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
from shared.catalog import MODELS
from shared.settings import ModelSettings
from worker.checkpoint.tensor_names import Origin, autoencoder_origins, transformer_origins
from worker.model.components import Components
from worker.model.load import load_components
from worker.model.text_encoder import build_text_encoder, family_of

_DTYPE = torch.bfloat16
_STD = 0.02
_RANK = 16
_WRITERS = 32
_WRITE_BYTES = 2**26

# Arguments of diffusers' Flux2Transformer2DModel, whose defaults describe [dev]. Klein's values are those of
# Klein4BParams and Klein9BParams in AI Toolkit's extensions_built_in/diffusion_models/flux2/src/model.py.
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

# The sizes of the language models of Mistral-Small-3.1-24B, Qwen3-4B and Qwen3-8B.
_TEXT: dict[str, dict[str, Any]] = {
    "flux2": {"hidden_size": 5120, "intermediate_size": 32768, "vocab_size": 131072},
    "flux2_klein_4b": {"hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151936},
    "flux2_klein_9b": {"hidden_size": 4096, "intermediate_size": 12288, "vocab_size": 151936},
}
_TEXT_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_NARROW = {"intermediate_size": 256, "num_attention_heads": 8, "vocab_size": 1024}
_TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


class Checkpoint:
    """A checkpoint of random weights in the real layout; its files stay in memory until the context ends.

    Loading it takes as long as in a worker whose files are in the page cache. Each tensor is drawn from its own
    generator, seeded with the tensor's name.

    Args:
        model: id in the catalogue.
        tiny: write a small model of the same architecture.
        device: device that draws the weights.
        narrow: write a text encoder with a twentieth of the weights and embeddings of the same width, for runs that do
            not measure it.
    """

    def __init__(self, model: str, *, tiny: bool, device: torch.device, narrow: bool = False) -> None:
        self.model = model
        self._device = device
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="flux2-bench-")))
        sizes = {**_TINY, "guidance_embeds": model == "flux2"} if tiny else _FULL[model]
        with torch.device("meta"):
            transformer: Any = Flux2Transformer2DModel(**sizes)  # type: ignore[no-untyped-call]
            autoencoder: Any = AutoencoderKLFlux2(**(_TINY_AUTOENCODER if tiny else {}))  # type: ignore[no-untyped-call]
        names = MODELS[model]
        self._write(names.transformer_file, _bfl_shapes(transformer, transformer_origins(transformer)))
        self._write(names.autoencoder_file, _bfl_shapes(autoencoder, autoencoder_origins(autoencoder)))
        self._write_text_encoder(_text_config(model, tiny=tiny, narrow=narrow))
        if device.type == "cuda":
            torch.cuda.empty_cache()  # otherwise the placement would count the drawn weights' memory as occupied

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to load the files; they end with this process' context."""
        return {name: value for name, value in self.__dict__.items() if name != "_stack"}

    def load(self, precision: str, **settings: Any) -> Components:
        """Load the checkpoint as a worker with these settings does.

        Raises:
            CheckpointError: the device is too small.
        """
        return load_components(self.settings(precision, **settings), device=self._device, hf_token=None)

    def settings(self, precision: str, **settings: Any) -> ModelSettings:
        """Return settings that name this checkpoint, for processes that load it while this process runs."""
        return ModelSettings.model_validate({**self._places, "precision": precision, **settings})

    def environment(self) -> dict[str, str]:
        """Return the settings of worker processes that load this checkpoint while this process runs."""
        return {f"FLUX2_MODEL_{name.upper()}": value for name, value in self._places.items()}

    @property
    def _places(self) -> dict[str, str]:
        folder = self._folder
        return {"id": self.model, "path": str(folder), "text_encoder": str(folder / "text_encoder")}

    def _write_text_encoder(self, config: Any) -> None:
        folder = self._folder / "text_encoder"
        config.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        unread = (f"layers.{config.num_hidden_layers - 1}.", "norm.")
        weights = build_text_encoder(config).named_parameters()
        shapes = {name: tuple(weight.shape) for name, weight in weights if not name.startswith(unread)}
        self._write("text_encoder/model.safetensors", shapes)

    def _write(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Write a safetensors file of bfloat16 tensors into anonymous memory and link it into the folder."""
        header, starts, end = {}, dict[str, int](), 0
        for tensor, shape in shapes.items():
            starts[tensor], end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": (starts[tensor], end)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        descriptor = os.memfd_create(name)
        self._stack.callback(os.close, descriptor)
        (self._folder / name).symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)

        def write(tensor: str) -> None:
            values = _random(tensor, shapes[tensor], device=self._device).cpu().view(-1).view(torch.uint8).numpy().data
            start = 8 + len(text) + starts[tensor]
            while values:
                count = os.pwrite(descriptor, values[:_WRITE_BYTES], start)
                values, start = values[count:], start + count

        with ThreadPoolExecutor(_WRITERS) as pool:
            for _ in pool.map(write, shapes):
                pass


def write_adapter(target: Path, components: Components) -> None:
    """Write a LoRA of rank 16 for every linear layer in the blocks, named and stored as AI Toolkit does.

    The file's name seeds its values.
    """
    tensors: dict[str, Tensor] = {}
    for layer, (rows, columns) in components.layers.items():
        if "_blocks." in layer:
            for half, shape in (("A", (_RANK, columns)), ("B", (rows, _RANK))):
                seed = f"{target.name} {layer} {half}"
                drawn = _random(seed, shape, device=components.device)
                tensors[f"{PREFIX}{layer}.lora_{half}.weight"] = drawn.cpu()
    save_file(tensors, target, metadata={"format": "pt", "ss_base_model_version": components.model})


def _bfl_shapes(module: nn.Module, origins: Mapping[str, Origin]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's tensors under Black Forest Labs' names; it may be on the meta device."""
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter, empty in module.state_dict().items():
        if empty.is_floating_point():
            origin, (rows, *rest) = origins[parameter], empty.shape
            # The parameter is one of several equal parts of the original tensor: scale its rows up to the whole.
            shapes[origin.tensor] = (rows * origin.part_count // len(origin.parts), *rest)
    return shapes


def _text_config(model: str, *, tiny: bool, narrow: bool) -> Any:
    """Return the configuration of a language model with one layer more than the worker reads."""
    kind: Any = MistralConfig if model == "flux2" else Qwen3Config
    sizes = _TINY_TEXT if tiny else {**_TEXT[model], **_TEXT_HEADS, **(_NARROW if narrow else {})}
    return kind(**sizes, num_hidden_layers=max(family_of(kind()).hidden_states) + 1)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer without any word in its vocabulary: prompts become unknown tokens and padding."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    vocabulary = WordLevel({token: number for number, token in enumerate(special.values())}, unk_token="<unk>")
    kind: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = kind(tokenizer_object=Tokenizer(vocabulary), **special)
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _random(name: str, shape: tuple[int, ...], *, device: torch.device) -> Tensor:
    is_scale = ("norm" in name and name.endswith((".scale", ".weight"))) or name.endswith("running_var")
    if is_scale and len(shape) == 1:
        return torch.ones(shape, dtype=_DTYPE, device=device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.empty(shape, dtype=_DTYPE, device=device).normal_(0, _STD, generator=generator)
