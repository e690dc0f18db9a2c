"""Load each part of a model in its precision, onto the device or streamed there, and quantise its weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from shared.errors import CheckpointError
from worker.checkpoint.locate import ModuleFiles, TextEncoderFiles
from worker.checkpoint.reader import Reader
from worker.kernels.toolchain import triton_unavailable_reason
from worker.model.modules import (
    Regions,
    load_autoencoder,
    load_fp8_transformer,
    load_transformer,
    transformer_regions,
)
from worker.model.placement import TextEncoderPlace
from worker.model.precision import PrecisionPolicy, WeightStorage
from worker.model.qfloat8 import quantize
from worker.model.text_encoder import load_streamed_text_encoder, load_text_encoder, stream_from_host

_HOST = torch.device("cpu")


class PartLoader:
    """Loads parts onto one device.

    Args:
        reader: reads the files; it fills tensors on `device` only.
    """

    def __init__(self, device: torch.device, reader: Reader) -> None:
        self._device = device
        self._reader = reader

    def load_transformer(self, source: ModuleFiles, policy: PrecisionPolicy) -> tuple[Any, Regions]:
        """Return the transformer and the file regions of its dense weights.

        Raises:
            CheckpointError: see `worker.model.modules`. Under fp8 also: no kernels can be built.
        """
        if policy.storage is WeightStorage.FP8:
            transformer = self._load_fp8(source, policy)
        else:
            load = partial(load_transformer, fused_qkv=not policy.replaces_layers)
            transformer = self._load_in(load, source, policy, self._device)
        return transformer, transformer_regions(source, transformer, dtype=policy.dtype)

    def load_autoencoder(self, source: ModuleFiles, policy: PrecisionPolicy) -> Any:
        """Return the autoencoder, which is never quantised."""
        return load_autoencoder(source, device=self._device, dtype=policy.dtype, reader=self._reader)

    def load_text_encoder(
        self, source: TextEncoderFiles, policy: PrecisionPolicy, place: TextEncoderPlace
    ) -> nn.Module:
        """Return the text encoder, on the device or streaming its layers there."""
        load = partial(load_text_encoder, to_be_quantised=policy.replaces_layers)
        model: nn.Module
        if place == "resident":
            model = self._load_in(load, source, policy, self._device)
        elif not policy.replaces_layers:
            model = load_streamed_text_encoder(source, device=self._device, dtype=policy.dtype, reader=self._reader)
        else:
            model = self._load_in(load, source, policy, _HOST)
            # The files hold other values than the quantised layers, so these are streamed from copies.
            stream_from_host(model, device=self._device)
        return model

    def _load_fp8(self, source: ModuleFiles, policy: PrecisionPolicy) -> Any:
        device = self._device
        if device.type == "cuda" and (reason := triton_unavailable_reason()):
            raise CheckpointError(
                f"fp8 needs kernels that cannot be built here: {reason}; install it or change FLUX2_MODEL_PRECISION"
            )
        transformer = load_fp8_transformer(source, device=device, dtype=policy.dtype, reader=self._reader)
        # Give the memory that dense weights passed through back before the text encoder is loaded.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return transformer

    def _load_in(self, load: Any, source: Any, policy: PrecisionPolicy, device: torch.device) -> Any:
        """Run one of the loaders in a precision."""
        if not policy.replaces_layers:
            return self._read(load, source, policy, device)
        # To the host first, so that the device never holds all dense weights.
        model = self._read(load, source, policy, _HOST)
        quantize(model, device=device)
        return model

    def _read(self, load: Any, source: Any, policy: PrecisionPolicy, device: torch.device) -> Any:
        # The reader fills tensors on its own device; `fill` opens another one for the host.
        reader = self._reader if self._reader.device == device else None
        return load(source, device=device, dtype=policy.dtype, reader=reader)
