"""Find the API that commands use, and the key for it: options, variables, or a profile in a config file."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import ClientConfigRefused

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Target:
    """An API, and the key for it; as text, it does not show the key.

    Attributes:
        keyed_profile: the profile that gave the key, or None.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    keyed_profile: str | None = None


def find_target(url: str | None, profile: str | None, api_key: str | None = None) -> Target:
    """Return the API's address: from the options, else from the environment, else from the file's default profile.

    The key comes from the option, else from the profile that gives the address if it was named as an option, else from
    the environment, else from the profile: no address gets the key of another profile.

    Raises:
        ClientConfigRefused: the config file is unsound, or lacks the profile; or the key cannot be sent.
    """
    # Not in `Settings`: a mistake in the settings of a service on this host must not stop a client.
    was_named = bool(profile and not url)
    if not (url or profile):
        url, profile = os.environ.get("FLUX2_CLIENT_URL"), os.environ.get("FLUX2_CLIENT_PROFILE")
    own_key = name = None
    if not url:
        file = config_file()
        config = _read(file)
        name = profile or config.get("default")
        url, own_key = (DEFAULT_URL, None) if name is None else _read_profile(config, str(name), file)
    variable = os.environ.get("FLUX2_API_KEY") or None
    key = api_key or ((own_key or variable) if was_named else (variable or own_key))
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ClientConfigRefused("the API key holds a space, a line break or a character beyond ASCII; copy it again")
    is_own = key is not None and key == own_key
    return Target(url, key, str(name) if is_own else None)


def config_file() -> Path:
    """Return the path of the config file, which need not exist."""
    # The folder is the desktop's convention, not a setting of this project.
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "flux2" / "config.toml"


def _read(file: Path) -> dict[str, Any]:
    try:
        # Some editors of Windows begin a file with a byte order mark.
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ClientConfigRefused(f"{file} cannot be read: {error}") from error


def _read_profile(config: dict[str, Any], name: str, file: Path) -> tuple[str, str | None]:
    """Return the address and the key of a profile."""
    profiles = config.get("profiles")
    found = profiles.get(name) if isinstance(profiles, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("url"), str):
        raise ClientConfigRefused(
            f'{file} has no url for the profile {name!r}; add the section [profiles.{name}] with url = "http://..."'
        )
    key = found.get("api_key")
    if key is not None and not isinstance(key, str):
        raise ClientConfigRefused(
            f'{file}: the api_key of the profile {name!r} is no text; write api_key = "flux2_..."'
        )
    return found["url"], key or None
