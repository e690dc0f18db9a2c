"""Write images as files that contain their parameters, so that any one of them can be rendered again.

Each file holds the parameters twice: as JSON with the names of a request, which `shared.image_parameters` reads, and
in the text format of AUTOMATIC1111's web UI. PNG stores them in text chunks, JPEG and WebP in EXIF.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from PIL import ExifTags, Image, PngImagePlugin, TiffTags

from shared.image_parameters import JSON_CHUNK
from shared.job import AdapterReport, ImageFormat, ItemSpec, PipelineReport, ReferenceReport
from shared.recipe import request_fields

_TEXT_CHUNK = "parameters"

#: Content type of `encode_thumbnail`.
THUMBNAIL_TYPE: Final = "image/webp"
_THUMBNAIL_PIXELS: Final = 320

# A JPEG has one APP1 segment of 64 KiB for its EXIF, and some of that is structure.
_JPEG_EXIF_BYTES = 65_000
# Values longer than this, mostly prompts, are left out of a JPEG whose EXIF would not fit.
_SHORT_CHARS = 500

_CONTENT_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# What the engines step with, by the web UI's name: readers of its text find no parameters without a sampler.
_SAMPLER = "Euler"

# Labels of the readable text, in the web UI's order, with the parameters that they show.
_LABELS = (
    ("Steps", "sample_steps"),
    ("Sampler", "sampler"),
    ("CFG scale", "guidance_scale"),
    ("Seed", "seed"),
    ("Model", "model"),
)


def content_type(fmt: ImageFormat) -> str:
    """Return a format's media type, for HTTP."""
    return _CONTENT_TYPES[fmt]


def image_parameters(
    spec: ItemSpec,
    pipeline: PipelineReport,
    *,
    adapters: Iterable[AdapterReport],
    references: Iterable[ReferenceReport] = (),
    index: int,
    request_id: str | None = None,
) -> dict[str, Any]:
    """Return what an image file says of itself: the request's fields, then facts about its origin.

    Args:
        adapters: effects of the item's adapters, of which the scales are written.
        references: the reference images that the item used.
        index: index of the image in its request.
        request_id: job of the image; None if no queue was involved.
    """
    used = [reference.model_dump(mode="json") for reference in references]
    scales = {
        report.sha256: report.model_dump(mode="json", include={"scale_range", "scale_sources"}) for report in adapters
    }
    return {
        **request_fields(spec),
        "requested_width": spec.requested_width,
        "requested_height": spec.requested_height,
        "adapters": [{**ref.model_dump(mode="json"), **scales.get(ref.sha256, {})} for ref in spec.adapters],
        **({"references": used} if used else {}),
        **({"request_id": request_id} if request_id else {}),
        "index": index,
        "pipeline": pipeline.model_dump(mode="json"),
    }


def encode(image: Image.Image, fmt: ImageFormat, parameters: Mapping[str, object]) -> bytes:
    """Return the bytes of an image file that contains `parameters`.

    PNG is lossless; JPEG has quality 95 without chroma subsampling; WebP has quality 90.

    Args:
        image: RGB, 8 bits a channel.
        parameters: values that JSON can hold; the readable text shows some of those that `image_parameters` returns. A
            JPEG has 64 kB for both copies. If they do not fit, long values are left out and `"truncated": true` is
            added.

    Raises:
        TypeError: a parameter cannot be written as JSON.
    """
    file = io.BytesIO()
    match fmt:
        case "png":
            # Level 1 takes a third of the default's time (0.12 s against 0.4 s at 1024x1024) for 14 % more bytes.
            image.save(file, "PNG", pnginfo=_png_text(parameters), compress_level=1)
        case "jpeg":
            image.save(file, "JPEG", quality=95, subsampling=0, exif=_jpeg_exif(parameters))
        case "webp":
            image.save(file, "WEBP", quality=90, exif=_exif(parameters))
    return file.getvalue()


def encode_thumbnail(image: Image.Image) -> bytes:
    """Return a small copy of an image as a WebP file, without parameters; its longer side has at most 320 pixels."""
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    small.save(file, "WEBP", quality=80)
    return file.getvalue()


def _png_text(parameters: Mapping[str, object]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    # Image browsers and model sites show this text.
    chunks.add_itxt(_TEXT_CHUNK, _encodable(_readable(parameters)))
    chunks.add_text(JSON_CHUNK, _json(parameters))
    return chunks


def _jpeg_exif(parameters: Mapping[str, object]) -> bytes:
    exif = _exif(parameters)
    if len(exif) <= _JPEG_EXIF_BYTES:
        return exif
    short = {name: value for name, value in parameters.items() if len(json.dumps(value)) <= _SHORT_CHARS}
    return _exif({**short, "truncated": True})


def _exif(parameters: Mapping[str, object]) -> bytes:
    exif = Image.Exif()
    # Other programs read and write this comment as big-endian UTF-16, so the whole block is big-endian.
    exif.endian = ">"
    # EXIF allows ASCII here; JSON's escapes carry the rest of Unicode.
    exif[ExifTags.Base.ImageDescription] = _json(parameters)
    exif[ExifTags.Base.Software] = "flux2-queue"
    comment = b"UNICODE\0" + _encodable(_readable(parameters)).encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return _with_undefined_type(exif.tobytes(), ExifTags.Base.UserComment, len(comment))


def _with_undefined_type(exif: bytes, tag: int, size_bytes: int) -> bytes:
    """Give the tag with that many bytes the type that EXIF prescribes for a comment."""
    # Pillow writes the type BYTE, which piexif, and with it AUTOMATIC1111's web UI, does not take for a comment.
    entry = struct.Struct(">HHL")
    return exif.replace(entry.pack(tag, TiffTags.BYTE, size_bytes), entry.pack(tag, TiffTags.UNDEFINED, size_bytes), 1)


def _json(parameters: Mapping[str, object]) -> str:
    return json.dumps(parameters, ensure_ascii=True, allow_nan=False)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no encoding can hold, and NUL."""
    # Many readers treat NUL as the end of a text chunk.
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _readable(parameters: Mapping[str, object]) -> str:
    """Return AUTOMATIC1111's text: the prompt, a negative prompt if given, then `Name: value` pairs on one line."""
    if isinstance(sigmas := parameters.get("sigmas"), list):
        parameters = {**parameters, "sample_steps": len(sigmas)}
    if "sample_steps" in parameters:
        parameters = {**parameters, "sampler": _SAMPLER}
    pairs = [f"{label}: {_quoted(parameters[name])}" for label, name in _LABELS if name in parameters]
    if {"width", "height"} <= parameters.keys():
        pairs.append(f"Size: {parameters['width']}x{parameters['height']}")
    pairs += _adapters(parameters.get("adapters"))
    lines = [str(parameters.get("prompt", ""))]
    if parameters.get("neg"):
        lines.append(f"Negative prompt: {parameters['neg']}")
    return "\n".join([*lines, ", ".join(pairs)])


def _adapters(value: object) -> list[str]:
    """Return the pairs that name the adapters and their strengths."""
    adapters = [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []
    if not adapters:
        return []
    names = [PurePosixPath(str(entry.get("path", ""))).stem for entry in adapters]
    # Model sites look an adapter up by the first ten digits of its file's sha256.
    hashes = {f"lora:{name}": str(entry.get("sha256", ""))[:10] for name, entry in zip(names, adapters, strict=True)}
    strengths = ", ".join(f"{name} {entry.get('multiplier')}" for name, entry in zip(names, adapters, strict=True))
    return [f"Loras: {_quoted(strengths)}", f"Hashes: {json.dumps(hashes)}"]


def _quoted(value: object) -> str:
    """Quote a value that contains a separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
