"""Find misspelt settings: pydantic ignores unknown variables, so nobody would notice a typing error."""

from __future__ import annotations

import difflib
import os

from dotenv import dotenv_values
from pydantic import BaseModel

from shared.settings import DOTENV, Settings

_PREFIX = "FLUX2_"
# Other programs have variables with this prefix too, so one counts as misspelt only if it resembles a setting.
_CUT_PREFIX = "FLUX_"
# The client's commands read these: a client has no other settings.
_CLIENT_VARIABLES = ["FLUX2_CLIENT_URL", "FLUX2_CLIENT_PROFILE", "FLUX2_API_KEY"]


def find_unknown_settings() -> dict[str, str | None]:
    """Return each unknown `FLUX2_*` variable, sorted, with the most similar setting, or None if none is similar.

    A `FLUX_*` variable is in the result if it is or resembles a setting without the 2.
    """
    known = [
        f"{_PREFIX}{section}_{name}".upper()
        for section, info in Settings.model_fields.items()
        if isinstance(info.default, BaseModel)
        for name in type(info.default).model_fields
    ] + _CLIENT_VARIABLES
    # Settings holds only the variables that it knows, so the environment itself is read here.
    names = {name.upper() for name in (*os.environ, *dotenv_values(DOTENV))}
    unknown = {name: _most_similar(name, known) for name in sorted(names - {*known}) if name.startswith(_PREFIX)}
    cut = {name: _most_similar(name, known) for name in sorted(names) if name.startswith(_CUT_PREFIX)}
    return {**unknown, **{name: setting for name, setting in cut.items() if setting}}


def _most_similar(name: str, known: list[str]) -> str | None:
    whole = name if name.startswith(_PREFIX) else _PREFIX + name.removeprefix(_CUT_PREFIX)
    return next(iter(difflib.get_close_matches(whole, known, n=1, cutoff=0.8)), None)
