"""The loaded parts of a model; `worker.rendering.renderer` runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from worker.checkpoint.reader import Reader, Region
from worker.model.fp8 import attends_in_float8
from worker.model.placement import Placement
from worker.model.precision import PrecisionPolicy


@dataclass(frozen=True)
class Components:
    """One base model on one device; only `worker.lora.hot_swap` writes to its weights.

    Attributes:
        model: id in the catalogue.
        transformer: diffusers' Flux2Transformer2DModel.
        autoencoder: diffusers' AutoencoderKLFlux2.
        text_encoder: a decoder stack whose hidden states are the prompt's embeddings.
        layers: (out, in) of every linear layer that an adapter may name, by BFL's module path.
        revision: see `worker.checkpoint.revision`.
        precision: precision of the transformer and the autoencoder; the autoencoder's weights are always dense.
        placement: which parts are on the device.
        regions: the transformer's weights in the checkpoint's files, if stored in the dtype that runs.
        text_encoder_precision: None if it equals the transformer's.
        reader: holds the files open that are read again while the model runs; None if no file is.
        compiled: whether the transformer's blocks are compiled.
        load_s: seconds of loading, by part.
    """

    model: str
    transformer: Any
    autoencoder: Any
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerFast
    layers: dict[str, tuple[int, int]]
    revision: str
    precision: PrecisionPolicy
    device: torch.device
    placement: Placement
    regions: Mapping[str, Sequence[Region]]
    text_encoder_precision: PrecisionPolicy | None = None
    reader: Reader | None = None
    compiled: bool = False
    load_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of latents and embeddings."""
        return self.precision.dtype

    @property
    def precision_names(self) -> str:
        """The name of the precision for reports, followed by those of parts that have another one than usual."""
        names = [self.precision.name]
        if attends_in_float8(self.transformer):
            names.append("attention fp8")
        if self.text_encoder_precision not in (None, self.precision):
            assert self.text_encoder_precision is not None
            names.append(f"text encoder {self.text_encoder_precision.name}")
        return ", ".join(names)

    @property
    def is_distilled(self) -> bool:
        """Whether guidance is an input of the transformer; otherwise it needs a second pass with a negative prompt."""
        embeds: bool = self.transformer.config.guidance_embeds
        return embeds
