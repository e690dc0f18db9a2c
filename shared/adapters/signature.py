"""Recognise files that are not safetensors: people upload web pages, pickles and LFS pointers."""

from __future__ import annotations

_STARTS = (
    (b"PK\x03\x04", "a zip archive, as PyTorch's .pt and .ckpt files are; pickles are never loaded"),
    (b"\x80\x02", "a PyTorch pickle; pickles are never loaded"),
    (b"\x80\x03", "a PyTorch pickle; pickles are never loaded"),
    (b"\x80\x04", "a PyTorch pickle; pickles are never loaded"),
    (b"\x80\x05", "a PyTorch pickle; pickles are never loaded"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"<?xml", "an XML document"),
    (b"{", "a JSON document"),
)


def identify_format(start: bytes) -> str | None:
    """Return the name of the format that a file's first bytes show; None if they show no known format."""
    trimmed = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if trimmed[:5].lower() in (b"<html", b"<!doc", b"<head"):
        return "an HTML page"
    return next((kind for magic, kind in _STARTS if start.startswith(magic) or trimmed.startswith(magic)), None)
