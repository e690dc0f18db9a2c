"""Write facts about an adapter for people.

`flux2 inspect`, the client and the results of images use the same words, which stand here once. The facts have the
names and values of JSON answers, so that those of an API can be written too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Of the sources in `shared.adapters.strength.Source`; another one is shown as it is.
_SOURCES = {
    "tensor": "alpha tensors",
    "lora_adapter_metadata": "lora_adapter_metadata in the header",
    "lora_alpha": "lora_alpha in the header",
    "adapter_config.json": "adapter_config.json next to the file",
    "none": "no alpha stored",
    "unused": "the stored alpha has no effect without a rank",
}
_NAMES = {"trainer": "trainer (guess)", "scale_range": "scale"}


def describe_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) for each fact of `Inspection`, in their order."""
    texts = {name: _text(value) for name, value in facts.items() if name != "scale_sources"}
    if not facts.get("must_ignore"):
        texts.pop("must_ignore", None)
    if "scale_range" in facts:
        texts["scale_range"] = describe_scale(facts["scale_range"], facts.get("scale_sources", ()))
    if "blocks" in facts:
        texts["blocks"] = ", ".join(_block(name, **block) for name, block in facts["blocks"].items()) or "-"
    return [(_NAMES.get(name, name.replace("_", " ")), text) for name, text in texts.items()]


def describe_scale(scale_range: Sequence[float] | None, sources: Sequence[str]) -> str:
    """Return e.g. "0.25 to 0.5 (alpha tensors)", or "-" if nothing is known.

    Args:
        scale_range: lowest and highest scale of the layers; None if unknown.
        sources: where the scales were found, by their names in JSON answers.
    """
    found = f" ({', '.join(_SOURCES.get(source, source) for source in sources)})" if sources else ""
    if scale_range is None:
        return f"unknown{found}" if found else "-"
    low, high = (f"{scale:g}" for scale in scale_range)
    return low + found if low == high else f"{low} to {high}{found}"


def _block(name: str, *, layers: int, matched: int | None) -> str:
    return f"{layers} {name}" if matched is None else f"{matched} of {layers} {name}"


def _text(value: object) -> str:
    if value is None or value in ("", (), [], {}):
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
