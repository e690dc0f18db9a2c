"""Guess which tool wrote an adapter file, from its metadata and the style of its keys.

Only people read the guess. Nothing about how the adapter is applied depends on it.
"""

from __future__ import annotations

import json
import re

from shared.adapters.header_json import Header

# Entries that one tool writes.
_ENTRIES = (("ot_branch", "OneTrainer"), ("ot_revision", "OneTrainer"), ("ot_config", "OneTrainer"))
# kohya's scripts and their descendants name the module that made the network.
_NETWORK_MODULES = (
    (r"networks\.lora_flux_2", "musubi-tuner"),
    (r"lycoris\.", "kohya's scripts with LyCORIS"),
    (r"networks\.", "kohya's scripts"),
)
_ANY = r""
_TOOLKIT = r"\.(lora_[AB]\.weight|lokr_w[12](_[ab])?|alpha|magnitude|diff)$"
_DIFFUSERS = (
    r"(\.lora_[AB](\.[\w-]+)?\.weight|\.lora_magnitude_vector(\.[\w-]+)?(\.weight)?|[._]lora\.(down|up)\.weight)$"
)
_LYCORIS = r"\.(lokr_|hada_|lora_(up|down|mid)\.|alpha$|dora_scale$|diff$|oft_)"
# Styles of keys, with the ends of all keys that the tool writes in this style. The first that fits counts.
_KEYS = (
    (r"^lora_unet_", "musubi-tuner or kohya's scripts", _ANY),
    (r"^lycoris_(single_)?transformer_blocks_", "SimpleTuner with LyCORIS", _LYCORIS),
    (r"^lycoris_(double|single)_blocks_", "AI Toolkit, old LoKr", r"\.(lokr_w[12](_[ab])?|alpha)$"),
    (r"\.(qkv|linear1)\.[0-3]\.lora_", "OneTrainer", _ANY),
    (r"^(transformer\.|double_|single_).*\.lora_(down|up)\.weight$", "OneTrainer", _ANY),
    (r"^base_model\.model\.", "PEFT, as fal uses it", _ANY),
    (r"^transformer\.", "diffusers or SimpleTuner", _DIFFUSERS),
    (r"\.lora_[AB]\.default\.weight$", "DiffSynth-Studio", _ANY),
    (r"^model\.diffusion_model\.", "ComfyUI", _ANY),
    (r"^diffusion_model\..*(img|txt)_(attn|mlp)_", "musubi-tuner, converted", r"\.(lora_[AB]\.weight|alpha)$"),
    (r"^diffusion_model\.(double|single)_blocks\.", "AI Toolkit", _TOOLKIT),
)


def guess_trainer(header: Header) -> str | None:
    """Return the name of the tool that probably wrote the file; None without a hint."""
    return _from_metadata(header.metadata) or next(
        (name for pattern, name, ends in _KEYS if _fits(header, pattern, ends)), None
    )


def _fits(header: Header, pattern: str, ends: str) -> bool:
    keys = header.tensors
    return any(re.search(pattern, key) for key in keys) and all(re.search(ends, key) for key in keys)


def _from_metadata(metadata: dict[str, str]) -> str | None:
    if software := _software(metadata.get("software", "")):
        return software
    for entry, name in _ENTRIES:
        if entry in metadata:
            return name
    module = metadata.get("ss_network_module", "")
    return next((name for pattern, name in _NETWORK_MODULES if re.match(pattern, module)), None)


def _software(text: str) -> str | None:
    """Read AI Toolkit's entry."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    name = "AI Toolkit" if entry["name"] == "ai-toolkit" else entry["name"][:80]
    return f"{name} {str(entry['version'])[:40]}" if entry.get("version") else name
