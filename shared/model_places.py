"""Check the places of a model's weights, folders or repositories of the hub, before anything reads a tensor.

The tensors of FLUX.2 [klein] base and of its distilled version differ only in their values, so nothing later would
notice that one is served as the other.
"""

from __future__ import annotations

import json
from pathlib import Path

from shared.catalog import MODELS, Model
from shared.errors import CheckpointError
from shared.settings import ModelSettings


def check_model_places(settings: ModelSettings) -> None:
    """Check that the folders exist which the settings name, and that the weights are not known to be another model's.

    Raises:
        CheckpointError: a folder does not exist, or `FLUX2_MODEL_PATH` holds another model of the catalogue.
    """
    _require_folders(settings)
    require_model(settings)


def require_model(settings: ModelSettings) -> None:
    """Check that the weights are not known to be another model's; a place that does not exist passes.

    Raises:
        CheckpointError: names what was found, the model that it is, and the settings to change.
    """
    model = MODELS[settings.id]
    place = settings.path or model.base_model
    found = _model_of_folder(Path(place), model) if Path(place).is_dir() else _model_of_repository(place)
    if found is not None and found[0] is not model:
        other, evidence = found
        raise CheckpointError(
            f"FLUX2_MODEL_PATH {place} {evidence}, so it is {other.id}, not {model.id}; set FLUX2_MODEL_ID (or --model "
            f"of flux2 up) to {other.id}, or FLUX2_MODEL_PATH to the files of {model.id}"
        )


def _require_folders(model: ModelSettings) -> None:
    """Refuse a path that is no folder and cannot be a repository's id."""
    places = {"FLUX2_MODEL_PATH": model.path, "FLUX2_MODEL_TEXT_ENCODER": model.text_encoder}
    for variable, place in places.items():
        if place and _is_path(place) and not Path(place).is_dir():
            raise CheckpointError(f"{variable} {place}: no such folder; correct it, or give a repository id of the hub")


def _is_path(place: str) -> bool:
    # A repository's id is `name` or `owner/name`.
    return Path(place).is_absolute() or place.startswith(".") or place.count("/") > 1


def _model_of_repository(name: str) -> tuple[Model, str] | None:
    for model in MODELS.values():
        # The hub ignores case.
        if name.lower() == model.base_model.lower():
            return model, f"is the repository of {model.id}"
    return None


def _model_of_folder(folder: Path, model: Model) -> tuple[Model, str] | None:
    """Return the model that a folder holds, with the evidence; None if nothing says which.

    The loader takes the model's own single file if there is one, and else diffusers' folders.
    """
    if (folder / model.transformer_file).is_file():
        return None
    stated = stated_distilled(folder / "model_index.json")
    relatives = relatives_of(model)
    if stated is not None and len(relatives) > 1:
        named = next(each for each in relatives if (each.distilled_from is not None) == stated)
        return named, f"has a model_index.json with is_distilled {str(stated).lower()}"
    # Next to diffusers' folders, the file of a quite different model says nothing about them.
    others = relatives if (folder / "transformer").is_dir() else MODELS.values()
    file_of = {each.transformer_file: each for each in others if (folder / each.transformer_file).is_file()}
    return next(((each, f"holds {file}") for file, each in file_of.items()), None)


def relatives_of(model: Model) -> list[Model]:
    """Return a model and those that differ from it only by distillation."""
    origin = model.distilled_from or model.id
    return [each for each in MODELS.values() if origin in (each.id, each.distilled_from)]


def stated_distilled(index: Path) -> bool | None:
    """Return what the index of a diffusers pipeline says about distillation; None if it says nothing."""
    try:
        stated = json.loads(index.read_text()).get("is_distilled")
    except (OSError, ValueError, AttributeError):
        # Not needed to load the weights, so nothing depends on a file that cannot be read.
        return None
    return stated if isinstance(stated, bool) else None
