"""Recognise the base model that an adapter file names in its metadata, however its trainer spells it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from shared.catalog import MODELS

# Spellings without separators and in lower case. AI Toolkit writes `flux2_klein_9b`, musubi-tuner `flux_2_klein_9b`,
# a `modelspec.architecture` is like `flux-2-klein-9b/lora`.
_SPELLINGS = {
    "flux2": "flux2",
    "flux2dev": "flux2",
    "flux2klein4b": "flux2_klein_4b",
    "flux2klein9b": "flux2_klein_9b",
    "flux2kleinbase4b": "flux2_klein_4b",
    "flux2kleinbase9b": "flux2_klein_9b",
    "flux2klein4bdistilled": "flux2_klein_4b_distilled",
    "flux2klein9bdistilled": "flux2_klein_9b_distilled",
}
# OneTrainer writes the family alone, whatever the size: `Flux.2-klein/lora`.
_FAMILIES = {"flux2klein": ("flux2_klein_4b", "flux2_klein_9b")}

# The file of the weights. musubi-tuner states the same version for a distilled klein and its base model, but not this.
_WEIGHTS_KEY = "ss_sd_model_name"

#: Entries of `__metadata__` that name the base. The first is for one trainer's models, so it counts if both exist.
BASE_KEYS = ("ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True)
class StatedBase:
    """The base model that a file's metadata names.

    Attributes:
        key: entry of `__metadata__`.
        spelling: the entry's value.
        models: ids in the catalogue that it may stand for; empty for a base that the catalogue lacks.
    """

    key: str
    spelling: str
    models: tuple[str, ...]

    @property
    def is_other_family(self) -> bool:
        """Whether it is no FLUX.2; a FLUX.2 with an unknown spelling is one."""
        return not self.models and not _plain(self.spelling).startswith("flux2")

    @property
    def is_flux1(self) -> bool:
        return re.match(r"flux(1|dev$|schnell$|$)", _plain(self.spelling)) is not None


def stated_base(metadata: Mapping[str, str]) -> StatedBase | None:
    """Return the base model that the metadata names; None if it names none, or no more than some FLUX.2."""
    version = metadata.get(BASE_KEYS[0])
    if version:
        return _distilled_base(metadata, version) or StatedBase(BASE_KEYS[0], version, _models(version))
    architecture = metadata.get(BASE_KEYS[1])
    if not architecture:
        return None
    stated = StatedBase(BASE_KEYS[1], architecture, _models(architecture))
    # Architectures are free text; only those that are understood can contradict a request.
    return stated if stated.models or stated.is_flux1 else None


def _distilled_base(metadata: Mapping[str, str], version: str) -> StatedBase | None:
    """Return the distilled model of the stated base if the adapter was trained on that model's file."""
    file = metadata.get(_WEIGHTS_KEY)
    for model in MODELS.values():
        if model.distilled_from in _models(version) and file == model.transformer_file:
            return StatedBase(_WEIGHTS_KEY, file, (model.id,))
    return None


def _models(spelling: str) -> tuple[str, ...]:
    plain = _plain(spelling)
    return (_SPELLINGS[plain],) if plain in _SPELLINGS else _FAMILIES.get(plain, ())


def _plain(spelling: str) -> str:
    # An architecture ends in the kind of the file: `/lora`.
    return re.sub(r"[^a-z0-9]", "", spelling.lower().partition("/")[0])
