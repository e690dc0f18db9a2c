"""Name the checkpoints of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from api.schemas.sweep import SweepCheckpoint
from shared.errors import InvalidRequest, RequestError
from shared.sources.source import HttpsFile, HubFile, S3Object, UploadedFile, parse_source

_BASE: Final = "base"
_MAX_CHARS: Final = 100


def checkpoint_labels(checkpoints: Sequence[SweepCheckpoint]) -> list[str]:
    """Return the label of each checkpoint: the given one, or the file's name without its suffix.

    Raises:
        InvalidRequest: two checkpoints would have the same label.
        AdapterRefused: no source has the form of a path.
    """
    labels: dict[str, int] = {}
    for index, checkpoint in enumerate(checkpoints):
        try:
            label = checkpoint.label or _file_label(checkpoint.path)
        except RequestError as error:
            error.field = f"checkpoints[{index}].path"
            raise
        if label in labels:
            raise InvalidRequest(
                f"checkpoints[{index}] has the label of checkpoints[{labels[label]}], {label!r}; give each its own "
                "`label`",
                field=f"checkpoints[{index}].label",
            )
        labels[label] = index
    return list(labels)


def _file_label(path: str | None) -> str:
    if path is None:
        return _BASE
    match parse_source(path):
        case UploadedFile(name=name):
            file = name
        case HubFile(path=path_in_repo):
            file = path_in_repo
        case S3Object(key=key):
            file = key
        case HttpsFile(url=url):
            file = unquote(urlsplit(url).path)
        case source:
            file = str(source)
    name = PurePosixPath(file).name
    return (name.removesuffix(".safetensors") or name or path)[:_MAX_CHARS]
