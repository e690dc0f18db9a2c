"""Names of the files in diffusers' layout, and the index of a module that is split into several."""

from __future__ import annotations

import json
from pathlib import Path

#: The weights of one module in one file; with `INDEX_SUFFIX`, the list of the files into which they are split.
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX_SUFFIX = ".index.json"


def read_index(index: Path) -> list[str]:
    """Return the names, sorted, of the files that an index lists.

    Raises:
        ValueError: the file is not an index of weights.
        OSError: it cannot be read.
    """
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} has no weight_map from tensors to files") from error
