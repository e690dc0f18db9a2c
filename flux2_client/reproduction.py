"""Render an image again from the parameters in its file, and say whether the pixels are the same."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from PIL import Image as PillowImage

from flux2_client.client import Client, Image
from flux2_client.similarity import Similarity, compare_images
from shared.errors import ReproductionFailed
from shared.image_parameters import read_parameters
from shared.provenance.signature import Signature, read_signature
from shared.request import REFERENCE_FIELDS

_OF_REQUEST: Final = ("model", "engine", "adapter_mode", "output_format")
_OF_PROMPT: Final = (
    *("prompt", "neg", "width", "height", "seed", "sample_steps", "sigmas", "guidance_scale"),
    *(fields[0] for fields in REFERENCE_FIELDS.values()),
)
_NEEDED: Final = ("model", "prompt", "seed", "width", "height", "loras", "adapters")
# Says how the adapters of the item before were replaced, which changes no pixel.
_WITHOUT_EFFECT: Final = ("change",)


def read_image_parameters(path: Path) -> dict[str, Any]:
    """Return the parameters in an image file.

    Raises:
        ReproductionFailed: the file cannot be read, or does not contain all of them.
    """
    try:
        parameters = read_parameters(path.read_bytes())
    except OSError as error:
        raise ReproductionFailed(f"{path} cannot be read: {error.strerror or error}; name an image file") from error
    except ValueError as error:
        raise ReproductionFailed(
            f"{path}: {error}; use a file as this service stored it, because many programs remove parameters"
        ) from error
    # Without adapters or noise levels, another image would be rendered.
    missing = [name for name in _NEEDED if name not in parameters]
    missing += [] if {"sample_steps", "sigmas"} & parameters.keys() else ["sample_steps"]
    if missing or parameters.get("truncated"):
        lacking = ", ".join(missing) or "long values"
        raise ReproductionFailed(
            f"{path} lacks {lacking}: a JPEG has no room for long prompts or lists; render the image as PNG or WebP"
        )
    return parameters


def request_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request that renders an image again, with the sha256 of its adapters: other files are refused."""
    digests = [adapter.get("sha256") for adapter in parameters.get("adapters", ())]
    loras = [
        {**lora, **({"sha256": digest} if digest else {})}
        for lora, digest in zip(parameters.get("loras", ()), digests, strict=True)
    ]
    prompt = {name: parameters[name] for name in _OF_PROMPT if parameters.get(name) not in (None, "")}
    # An empty prompt is one too.
    prompt["prompt"] = parameters["prompt"]
    return {
        **{name: parameters[name] for name in _OF_REQUEST if parameters.get(name) is not None},
        "loras": loras,
        "prompts": [prompt],
    }


@dataclass(frozen=True)
class Reproduction:
    """The pixels of an image and of its second rendering.

    Attributes:
        request_id: the job that rendered the second.
        data: its file.
        causes: what differs between the pipelines, if a pixel differs.
        signature: that of the first file, or None if it has none.
    """

    request_id: str
    data: bytes
    similarity: Similarity
    causes: tuple[str, ...]
    signature: Signature | None = None

    @property
    def is_identical(self) -> bool:
        return not self.similarity.differing

    def describe(self) -> tuple[str, ...]:
        """Return the result for people in lines, with the causes of a difference that are known."""
        signature = (f"signature: {self.signature.describe()}",) if self.signature else ()
        return (*self._describe_pixels(), *signature)

    def _describe_pixels(self) -> tuple[str, ...]:
        found = self.similarity
        if self.is_identical:
            return (f"identical: all {found.values:,} pixel values are the same",)
        causes = self.causes or ("the same software, precision and kind of device rendered both",)
        return (
            f"different: {found.differing:,} of {found.values:,} pixel values differ, by at most {found.maximum} "
            f"of 255; PSNR {found.psnr_db:.1f} dB",
            *(f"  {cause}" for cause in causes),
        )


def reproduce(client: Client, path: Path, *, trusted: str | None = None) -> Reproduction:
    """Render the image of a file again and compare both.

    Args:
        trusted: see `read_signature`.

    Raises:
        ReproductionFailed: the file has no parameters, or the job did not succeed.
        ApiError: the API refused the job, e.g. because an adapter has other bytes now.
    """
    parameters = read_image_parameters(path)
    job = client.submit(request_of(parameters))
    status = client.wait(job.request_id)
    if status.status != "succeeded":
        raise ReproductionFailed(f"request {job.request_id} {status.status}: {status.error or 'no reason is known'}")
    [image] = client.result(job.request_id).images
    before = path.read_bytes()
    return replace(_compare(before, image, parameters), signature=read_signature(before, trusted=trusted))


def _compare(before: bytes, image: Image, parameters: Mapping[str, Any]) -> Reproduction:
    data = image.bytes()
    one, other = _picture(before), _picture(data)
    try:
        similarity = compare_images(one, other)
    except ValueError as error:
        raise ReproductionFailed(f"the images cannot be compared: {error}; was the file edited?") from error
    causes = _differences(parameters.get("pipeline", {}), image.pipeline.model_dump(mode="json"))
    return Reproduction(image.request_id, data, similarity, tuple(causes) if similarity.differing else ())


def _picture(data: bytes) -> PillowImage.Image:
    return PillowImage.open(io.BytesIO(data)).convert("RGB")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two pipelines."""
    one, other = _flat(before), _flat(now)
    for name in sorted(one.keys() | other.keys()):
        if name not in _WITHOUT_EFFECT and one.get(name) != other.get(name):
            yield f"{name}: {one.get(name, 'unknown')} in the file, {other.get(name, 'unknown')} now"


def _flat(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in pipeline.items() if name != "versions"}
    # "cuda:1 NVIDIA H200" and "cuda:0 NVIDIA H200" are the same kind of device.
    device = str(values.get("device", ""))
    values["device"] = device.partition(" ")[2] or device.partition(":")[0]
    return {**values, **{f"version of {name}": version for name, version in pipeline.get("versions", {}).items()}}
