"""Find the reference images of a sample, by the trainer's rules.

The trainer calls them control images. Slot 1 is, in this order, the prompt's `--ctrl_img` flag, `ctrl_img` or
`ctrl_img_1`; the slots 2 and 3 have one key each and no flag. Only samples have them: the trainer reads nothing of the
kind from the sample section.

Source:
    ai-toolkit's SampleItem, GenerateImageConfig (toolkit/config_modules.py) and Flux2Model.generate_single_image
    (extensions_built_in/diffusion_models/flux2/flux2_model.py)
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shared.errors import ConfigRefused, InvalidRequest, ReferencesNeeded
from shared.request import REFERENCE_FIELDS
from shared.training_config.config_file import expect_text

#: The flag of a prompt that names the image of slot 1.
FLAG = "ctrl_img"
# Longest path of a file on Linux, in bytes.
_MAX_LENGTH = 4096
# What the request's fields take as it is; anything else is a file of the trainer's host.
_SOURCES = ("https", "s3", "hf", "upload", "data")


class SampleReference(NamedTuple):
    """One reference image of a sample.

    Attributes:
        slot: 1 to 3.
        image: the config's name for it; for the trainer, a path on its host.
        key: the sample's key, or `--ctrl_img`.
    """

    slot: int
    image: str
    key: str

    @property
    def field(self) -> str:
        """The request's field for the slot."""
        return REFERENCE_FIELDS[self.slot][0]


def read_references(given: Mapping[str, Any], flags: Mapping[str, str], where: str) -> Iterator[SampleReference]:
    """Yield the reference images of a sample in the order of their slots.

    Args:
        given: the sample as written.
        flags: the flags of its prompt.
        where: the sample's place in the config, for errors.

    Raises:
        ConfigRefused: an image's name is no text, is empty or is too long for a path.
    """
    # A request has the keys of a sample, with the same precedence.
    for slot, keys in REFERENCE_FIELDS.items():
        if slot == 1 and FLAG in flags:
            yield SampleReference(slot, _check(flags[FLAG], f"--{FLAG} in {where}.prompt"), f"--{FLAG}")
            continue
        for key in keys:
            if given.get(key) is not None:
                place = f"{where}.{key}"
                yield SampleReference(slot, _check(expect_text(given[key], place), place), key)
                break


def unused_images(
    section: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], references: Iterable[Sequence[SampleReference]]
) -> Iterator[str]:
    """Describe images that the config names and the trainer never opens; each kind is described once.

    Args:
        references: those of each entry, see `read_references`.
    """
    for key in (key for keys in REFERENCE_FIELDS.values() for key in keys if section.get(key) is not None):
        yield (
            f"sample.{key} has no effect, as in the trainer, which reads reference images from single samples; to "
            "render with it, move it into each of sample.samples"
        )
        break
    for index, (entry, found) in enumerate(zip(entries, references, strict=True)):
        if not found or found[0].slot != 1:
            continue
        first = found[0]
        unused = next((key for key in REFERENCE_FIELDS[1] if entry.get(key) not in (None, first.image)), None)
        if unused is not None:
            yield f"sample.samples[{index}].{unused} has no effect, as in the trainer: {first.key} takes its place"
            break


def name_images(images: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Return, for each image of the config, the value of the request's field.

    Args:
        given: values of the caller's choice, by the config's names. A link needs none.

    Raises:
        ReferencesNeeded: images are neither given nor links.
        InvalidRequest: the config does not name a given image.
    """
    known = dict.fromkeys(images)
    needed = [image for image in known if image not in given and not _is_source(image)]
    if needed:
        raise ReferencesNeeded(needed)
    unknown = next((image for image in given if image not in known), None)
    if unknown is not None:
        raise InvalidRequest(
            f"no sample of the config has the reference image {reprlib.repr(unknown)}; leave it out of images, or "
            "write it as the config does",
            field="images",
        )
    return {image: given.get(image, image) for image in known}


def _check(image: str, key: str) -> str:
    if not image:
        raise ConfigRefused(f"{key} is empty, and the trainer fails to open it; name an image, or remove it")
    if "\0" in image or len(image) > _MAX_LENGTH:
        raise ConfigRefused(f"{key} is {reprlib.repr(image)}, which is no path of a file; name an image")
    return image


def _is_source(image: str) -> bool:
    try:
        return urlsplit(image).scheme in _SOURCES
    except ValueError:
        return False
