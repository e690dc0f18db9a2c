"""Submit a training config, with the reference images that its samples name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flux2_client.client import Client
from flux2_client.config_images import find_images
from flux2_client.image_file import image_has_changed
from flux2_client.models import Replay
from shared.console import LineConsole
from shared.errors import ApiError, ConfigRefused, ReferencesNeeded
from shared.plurals import counted


@dataclass(frozen=True)
class SubmittedReplay:
    """An accepted replay.

    Attributes:
        images: the files of its reference images that are on this host, by their sha256.
    """

    replay: Replay
    images: Mapping[str, Path] = field(default_factory=dict)


def submit_config(
    console: LineConsole, client: Client, config: Path, *, lora: str | None, folders: Sequence[Path]
) -> SubmittedReplay:
    """Submit the config's samples, and upload each of their reference images once.

    Raises:
        ConfigRefused: the file is not text in UTF-8, or names more images than the API takes.
        ConfigImagesNotFound: see `find_images`.
        UploadRefused: an image cannot be read any more, or has changed since it was found.
        ApiError: the API refuses the config or an image, or cannot be reached for longer than the client allows.
    """
    try:
        text = config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigRefused(f"{config} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    try:
        return SubmittedReplay(client.submit_replay(text, lora=lora))
    except ApiError as error:
        # Only the API reads configs, so it names the images.
        if error.problem.get("code") != ReferencesNeeded.code:
            raise
        names = error.problem["images"]
    # All files are found before the first one is uploaded.
    found = find_images(names, config=config, folders=folders)
    files = {image.sha256: image.path for image in found}
    if len(files) > (limit := client.models().limits.max_reference_images):
        raise ConfigRefused(
            f"{config} names {len(files)} different reference images, and one replay may name {limit}; split the "
            "config, or ask the operator to raise FLUX2_REFERENCES_MAX_IMAGES"
        )
    uploads = {sha256: _upload(client, path, sha256) for sha256, path in files.items()}
    console.print_line(f"{counted(len(files), 'reference image was', 'reference images were')} uploaded")
    images = {image.name: uploads[image.sha256] for image in found}
    return SubmittedReplay(client.submit_replay(text, lora=lora, images=images), files)


def _upload(client: Client, path: Path, sha256: str) -> str:
    stored = client.upload_image(path)
    # The samples of other files with the same content name this upload too.
    if stored.sha256 != sha256:
        raise image_has_changed(path)
    return stored.path
