"""Find misspelt settings: pydantic ignores variables that it does not know, so a typing error would go unnoticed."""

from __future__ import annotations

import difflib
import os

from dotenv import dotenv_values
from pydantic import BaseModel

from shared.settings import DOTENV, Settings


def find_unknown_settings() -> dict[str, str | None]:
    """Return each `FLUX2_*` variable that is not a setting, sorted, with the setting that it resembles most, if any."""
    known = {
        f"FLUX2_{section}_{name}".upper()
        for section, info in Settings.model_fields.items()
        if isinstance(info.default, BaseModel)
        for name in type(info.default).model_fields
    }
    # Settings holds only the variables that it knows, so the environment itself is read here.
    names = {name.upper() for name in (*os.environ, *dotenv_values(DOTENV))}
    unknown = sorted(name for name in names if name.startswith("FLUX2_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None) for name in unknown}
