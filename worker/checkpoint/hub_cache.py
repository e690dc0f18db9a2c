"""Check, before torch is imported, that an offline host has a model's files in the hub's cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import is_offline_mode, try_to_load_from_cache

from shared.catalog import MODELS
from shared.errors import CheckpointError
from shared.settings import ModelSettings


def require_cached_model(settings: ModelSettings) -> None:
    """Check that HF_HUB_OFFLINE does not forbid a download that the model needs.

    Raises:
        CheckpointError: a repository's file is not in the cache.
    """
    if not is_offline_mode():
        return
    model = MODELS[settings.id]
    needed = [
        (settings.path or model.base_model, model.transformer_file, settings.revision),
        (settings.text_encoder or model.text_encoder, "config.json", None),
    ]
    for place, file, revision in needed:
        if not Path(place).is_dir() and not isinstance(try_to_load_from_cache(place, file, revision=revision), str):
            raise CheckpointError(offline_problem(place, file))


def offline_problem(place: str, what: str) -> str:
    """Return the message about a file that is neither on this host nor may be downloaded."""
    return (
        f"{place!r} is not a folder on this host, and {what} is not in the hub's cache, while HF_HUB_OFFLINE "
        "forbids downloads; unset it, or correct FLUX2_MODEL_PATH and FLUX2_MODEL_TEXT_ENCODER"
    )
