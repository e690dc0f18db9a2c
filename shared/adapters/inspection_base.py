"""Find the base model that `flux2 inspect` compares an adapter with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.adapters.base_sizes import linear_layers
from shared.adapters.inspection import read_linear_layers
from shared.catalog import FLUX2_DEV, MODELS, find_model
from shared.errors import AdapterNotFound

# No limit: only the header of a checkpoint is read.
_ANY_SIZE = 2**62


@dataclass(frozen=True)
class ComparedBase:
    """A base model: its id in the catalogue, and (out, in) of each of its linear layers."""

    model: str
    layers: Mapping[str, tuple[int, int]]


def find_base(name: str, *, model: str | None = None) -> ComparedBase:
    """Return the base of a model id or of a transformer file.

    Args:
        model: id of a file's model; None finds the published model with the same layers.

    Raises:
        ModelNotFound: no model has the id `model`.
        AdapterNotFound: `name` is neither a model nor a file.
        AdapterRefused: the file is not a safetensors file.
    """
    if name in MODELS:
        return ComparedBase(name, _published_layers(name))
    file = Path(name).expanduser()
    if not file.is_file():
        raise AdapterNotFound(f"--base {name}: no such file, nor one of the models {', '.join(MODELS)}")
    layers = read_linear_layers(file, max_bytes=_ANY_SIZE)
    if model is None:
        model = next((known for known in MODELS if _published_layers(known) == layers), FLUX2_DEV.id)
    return ComparedBase(find_model(model).id, layers)


def _published_layers(model: str) -> dict[str, tuple[int, int]]:
    # A distilled model has the shapes of the model from which it was distilled.
    return linear_layers(MODELS[model].distilled_from or model)
