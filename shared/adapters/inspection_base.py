"""Find the base model that `flux2 inspect` compares an adapter with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.adapters.base_files import find_base_files, narrow_model, read_linear_layers
from shared.adapters.base_sizes import linear_layers
from shared.catalog import FLUX2_DEV, MODELS, find_model
from shared.errors import AdapterNotFound


@dataclass(frozen=True)
class ComparedBase:
    """A base model: its id in the catalogue, and (out, in) of each of its linear layers."""

    model: str
    layers: Mapping[str, tuple[int, int]]


def find_base(name: str, *, model: str | None = None) -> ComparedBase:
    """Return the base of a model id, or of a place that `shared.adapters.base_files` reads.

    Args:
        model: id of the place's model; None finds the published model with the same layers.

    Raises:
        ModelNotFound: no model has the id `model`.
        AdapterNotFound: `name` is neither a model nor a place with all files of a transformer.
        AdapterRefused: a file is not a safetensors file, or holds no layer of FLUX.2.
    """
    if name in MODELS:
        return ComparedBase(name, _published_layers(name))
    place = Path(name).expanduser()
    if not place.exists():
        raise AdapterNotFound(f"--base {name}: no such file or folder, nor one of the models {', '.join(MODELS)}")
    files = find_base_files(place)
    layers = read_linear_layers(files)
    if model is None:
        fitting = next((known for known in MODELS if _published_layers(known) == layers), FLUX2_DEV.id)
        return ComparedBase(narrow_model(MODELS[fitting], files).id, layers)
    return ComparedBase(find_model(model).id, layers)


def _published_layers(model: str) -> dict[str, tuple[int, int]]:
    # A distilled model has the shapes of the model from which it was distilled.
    return linear_layers(MODELS[model].distilled_from or model)
