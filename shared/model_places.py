"""Distinguish folders with a model's weights from repositories on the hub."""

from __future__ import annotations

from pathlib import Path

from shared.errors import CheckpointError
from shared.settings import ModelSettings


def require_model_folders(model: ModelSettings) -> None:
    """Check that the folders exist which the settings name; a repository id names none.

    Raises:
        CheckpointError: a path that cannot be a repository's id is no folder.
    """
    places = {"FLUX2_MODEL_PATH": model.path, "FLUX2_MODEL_TEXT_ENCODER": model.text_encoder}
    for variable, place in places.items():
        if place and _is_path(place) and not Path(place).is_dir():
            raise CheckpointError(f"{variable} {place}: no such folder; correct it, or give a repository id of the hub")


def _is_path(place: str) -> bool:
    # A repository's id is `name` or `owner/name`.
    return Path(place).is_absolute() or place.startswith(".") or place.count("/") > 1
