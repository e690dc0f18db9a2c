"""Read the config that PEFT stores in an adapter's folder.

A job keeps what the config stated when it was accepted, so that a later change of the folder changes no image.
"""

from __future__ import annotations

import json
from pathlib import Path

from shared.adapters.strength import CONFIG_NAME, PEFT_FILE, read_config
from shared.errors import AdapterRefused

#: PEFT's own configs have about 1 kB, with patterns for every layer of FLUX.2 [dev] 30 kB.
MAX_CONFIG_BYTES = 1024**2
# A job's record holds it, and so does each of its images.
_MAX_COMPACT_BYTES = 64 * 1024


def read_peft_config(path: Path) -> str | None:
    """Return the text of `adapter_config.json` from the folder of PEFT's `adapter_model.safetensors`, or None.

    Raises:
        AdapterRefused: the config has more than 1 MiB or is not UTF-8.
    """
    config = path.with_name(CONFIG_NAME)
    if path.name != PEFT_FILE or not config.is_file():
        return None
    try:
        with config.open("rb") as file:
            return decode_config(file.read(MAX_CONFIG_BYTES + 1))
    except OSError as error:
        raise AdapterRefused(f"{CONFIG_NAME} cannot be read: {error}; export the adapter again") from error


def decode_config(data: bytes) -> str:
    """Return the text of a config from its first `MAX_CONFIG_BYTES` + 1 bytes.

    Raises:
        AdapterRefused: the config has more than 1 MiB or is not UTF-8.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise AdapterRefused(f"{CONFIG_NAME} has more than {MAX_CONFIG_BYTES} bytes; export the adapter again")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise AdapterRefused(f"{CONFIG_NAME} cannot be read: {error}; export the adapter again") from error


def compact_config(text: str) -> str:
    """Return the part of a config that decides the scales, as JSON that `parse_layout` takes in its place.

    Raises:
        AdapterRefused: the text is no config, or this part of it has more than 64 KiB.
    """
    # In the config's order: the first pattern that matches a layer counts.
    compact = json.dumps(read_config(text, CONFIG_NAME), separators=(",", ":"))
    if len(compact) > _MAX_COMPACT_BYTES:
        raise AdapterRefused(
            f"{CONFIG_NAME} has more than {_MAX_COMPACT_BYTES} bytes of ranks and alphas; save the adapter with its "
            "config in the header, or write them into one file with flux2 convert"
        )
    return compact
