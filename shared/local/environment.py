"""Make the environment of the processes that a stack starts.

Each process runs in its own folder, where it would find neither `.env` nor the relative paths of the caller's settings.
This module therefore reads the file and makes the paths absolute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from shared.settings import DOTENV, Settings

# Variables that configure this project's processes begin with one of these.
_PREFIXES = ("FLUX2_", "HF_TOKEN", "AI_TOOLKIT_PATH", "AWS_")
# The caller's own key is for its client: no process of the service needs it, and no file of settings should hold it.
_CLIENT_KEY = "FLUX2_API_KEY"


def configured_variables() -> dict[str, str]:
    """Return the variables of `.env` and of the caller; the caller's win."""
    return {
        **{name: value for name, value in dotenv_values(DOTENV).items() if value is not None},
        # Children also need PATH, CUDA_VISIBLE_DEVICES and others that are not settings.
        **os.environ,
    }


def inherited_environment(settings: Settings) -> dict[str, str]:
    """Return the variables of `.env` and of the caller, with absolute paths; the caller's variables win."""
    variables = {name: value for name, value in configured_variables().items() if name.upper() != _CLIENT_KEY}
    paths = {
        "FLUX2_WORKER_LOCK_DIR": settings.worker.lock_dir,
        "FLUX2_WORKER_HEALTH_DIR": settings.worker.health_dir,
        "FLUX2_PROVENANCE_CERTIFICATE": settings.provenance.certificate,
        "FLUX2_PROVENANCE_KEY": settings.provenance.key,
        "AI_TOOLKIT_PATH": settings.ai_toolkit_path,
    }
    return {
        **variables,
        **{name: str(path.absolute()) for name, path in paths.items() if path},
    }


def unconfigured_environment() -> dict[str, str]:
    """Return the caller's variables, without those that configure this project."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}


def replace_variables(inherited: Mapping[str, str], owned: Mapping[str, str]) -> dict[str, str]:
    """Return `inherited` with the variables of `owned` in place of its own."""
    # Settings ignore case: a variable in lower case would compete with the one in upper case.
    return {**{name: value for name, value in inherited.items() if name.upper() not in owned}, **owned}


def overridden_names(inherited: Mapping[str, str], owned: Mapping[str, str]) -> list[str]:
    """Return the variables, sorted, to which `inherited` gives another value than `owned`."""
    given = {name.upper(): value for name, value in inherited.items() if value}
    return sorted(name for name, value in owned.items() if given.get(name, value) != value)


def configured_model_variables(settings: Settings, model: str) -> dict[str, str]:
    """Return the variables that name the model and its configured folders; repository ids are left out."""
    places = {"FLUX2_MODEL_PATH": settings.model.path, "FLUX2_MODEL_TEXT_ENCODER": settings.model.text_encoder}
    folders = {name: str(Path(place).absolute()) for name, place in places.items() if place and Path(place).exists()}
    return {"FLUX2_MODEL_ID": model, **folders}


def demo_model_variables(settings: Settings, model: str, checkpoint: Path) -> dict[str, str]:
    """Return the variables that make workers serve the demonstration model in `checkpoint`."""
    variables = {
        "FLUX2_MODEL_ID": model,
        "FLUX2_MODEL_PATH": str(checkpoint),
        "FLUX2_MODEL_TEXT_ENCODER": str(checkpoint / "text_encoder"),
        "FLUX2_MODEL_REVISION": "",
    }
    if "precision" not in settings.model.model_fields_set:
        # bfloat16 convolutions take 10 times as long on processors without AVX-512.
        variables["FLUX2_MODEL_PRECISION"] = "fp32"
    return variables
