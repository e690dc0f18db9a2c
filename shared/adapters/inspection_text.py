"""Write the description of an adapter file for people: a name and a text in each row."""

from __future__ import annotations

from dataclasses import fields

from shared.adapters.inspection import BlockLayers, Inspection

_SOURCES = {
    "tensor": "alpha tensors",
    "lora_adapter_metadata": "lora_adapter_metadata in the header",
    "lora_alpha": "lora_alpha in the header",
    "adapter_config.json": "adapter_config.json next to the file",
    "none": "no alpha stored",
}


def describe_rows(found: Inspection) -> list[tuple[str, str]]:
    """Return (name, text) for each fact, in the order of the fields."""
    rows = {field.name: _text(getattr(found, field.name)) for field in fields(found)}
    del rows["scale_sources"]
    if not found.must_ignore:
        del rows["must_ignore"]
    rows["scale_range"] = _scale(found)
    rows["blocks"] = ", ".join(_block(name, block) for name, block in found.blocks.items())
    names = {"trainer": "trainer (guess)", "scale_range": "scale"}
    return [(names.get(name, name.replace("_", " ")), text) for name, text in rows.items()]


def _scale(found: Inspection) -> str:
    sources = ", ".join(_SOURCES.get(source, source) for source in found.scale_sources)
    if found.scale_range is None:
        return f"unknown ({sources})" if sources else "-"
    low, high = found.scale_range
    return f"{low:g} ({sources})" if low == high else f"{low:g} to {high:g} ({sources})"


def _block(name: str, block: BlockLayers) -> str:
    return f"{block.layers} {name}" if block.matched is None else f"{block.matched} of {block.layers} {name}"


def _text(value: object) -> str:
    if value is None or value == () or value == {}:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return ", ".join(str(entry) for entry in value) if isinstance(value, tuple) else str(value)
