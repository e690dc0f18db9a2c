"""The precisions in which a model can run, and the capabilities of each.

No other module compares the names of precisions: each reads a capability of the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

import torch

from shared.job import Engine, Feature


class WeightStorage(Enum):
    """The storage format of the weights of linear layers on the device."""

    #: In the dtype of the activations.
    DENSE = auto()
    #: Every linear layer in float8, expanded before each product: `worker.model.qfloat8`.
    QFLOAT8 = auto()
    #: The blocks' linear layers in float8, multiplied as float8: `worker.model.fp8`.
    FP8 = auto()


@dataclass(frozen=True)
class PrecisionPolicy:
    """One precision: its number formats and its capabilities.

    Attributes:
        name: the value of `FLUX2_MODEL_PRECISION`, also used in reports.
        dtype: dtype of activations, latents and embeddings, and of all weights that are not stored in float8.
        engine: the engine of this project that runs these weights.
        can_merge: whether adapters can be merged into the weights.
        can_run_unmerged: whether adapters can run as extra products in each step.
        fits_toolkit: whether AI Toolkit's classes can hold the weights.
        keeps_bits: whether a step gives AI Toolkit's bits; compiled blocks must then not change them.
        compiles_by_default: whether blocks are compiled on a GPU unless the settings say otherwise.
        text_encoder: name of the text encoder's default precision; None for the same precision.
        attends_in_float8: whether blocks attend in float8 if the settings say so; see `worker.model.fp8_attention`.
    """

    name: str
    dtype: torch.dtype = torch.bfloat16
    storage: WeightStorage = WeightStorage.DENSE
    engine: Engine = "exact"
    can_merge: bool = True
    can_run_unmerged: bool = True
    fits_toolkit: bool = True
    keeps_bits: bool = True
    compiles_by_default: bool = False
    text_encoder: str | None = None
    attends_in_float8: bool = False

    def engines(self, *, has_toolkit: bool) -> tuple[Engine, ...]:
        """Return the engines that a worker with these weights offers: its own, and AI Toolkit's from a checkout."""
        return (self.engine, "ai-toolkit") if has_toolkit and self.fits_toolkit else (self.engine,)

    @property
    def features(self) -> tuple[Feature, ...]:
        """What a worker with these weights can do beyond its engines; see `shared.job.ENGINE_FEATURES`."""
        return ("merged",) if self.can_merge else ()

    @property
    def replaces_layers(self) -> bool:
        """Whether loading replaces linear layers one by one."""
        # Query, key and value must then stay separate layers.
        return self.storage is not WeightStorage.DENSE

    @property
    def rereads_weights(self) -> bool:
        """Whether the dense weights exist only in the checkpoint's files, from which each swap reads them again."""
        return self.storage is WeightStorage.FP8

    def text_encoder_policy(self, requested: str | None) -> PrecisionPolicy:
        """Return the text encoder's policy; `requested` is the name in the settings, or None for the default."""
        return PRECISIONS[requested or self.text_encoder or self.name]


PRECISIONS: Mapping[str, PrecisionPolicy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            # The bits of compiled blocks were compared in bfloat16 only, so float32 is not compiled unless asked for.
            PrecisionPolicy("bf16", compiles_by_default=True),
            PrecisionPolicy("fp32", dtype=torch.float32),
            # A small update that is merged into float8 weights would be lost in rounding.
            PrecisionPolicy("qfloat8", storage=WeightStorage.QFLOAT8, can_merge=False, fits_toolkit=False),
            PrecisionPolicy(
                "fp8",
                storage=WeightStorage.FP8,
                engine="fast",
                can_run_unmerged=False,
                fits_toolkit=False,
                # Products are rounded to float8, so the bits differ anyway and the compiler may fuse freely.
                keeps_bits=False,
                compiles_by_default=True,
                text_encoder="bf16",
                attends_in_float8=True,
            ),
        )
    }
)

#: The precision whose weights take the least memory while a step keeps AI Toolkit's bits.
SMALLEST_EXACT = PRECISIONS["qfloat8"]
