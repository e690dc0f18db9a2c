"""The parts that render an image, loaded and ready; which of them run when is decided by `worker.render`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Components:
    """One base model on one device; only `worker.pipeline.cache` writes to its weights.

    Attributes:
        model: id in the catalogue.
        transformer: diffusers' Flux2Transformer2DModel.
        autoencoder: diffusers' AutoencoderKLFlux2.
        text_encoder: decoder stack whose hidden states are the prompt's embeddings.
        layers: (out, in) of every linear layer that an adapter may name, by BFL's module path.
        revision: see `worker.pipeline.revision`.
        precision: `bf16` or `fp32`, of weights and activations alike.
    """

    model: str
    transformer: Any
    autoencoder: Any
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerFast
    layers: dict[str, tuple[int, int]]
    revision: str
    precision: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, latents and embeddings."""
        return DTYPES[self.precision]
