"""Explain why a tensor of an adapter file is refused: the real reason, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shared.errors import AdapterRefused

_TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.|model\.)?"
    r"(?:lora_)?(?:text_encoders?|te\d?|text_encoder_?\d|text_model|conditioner|cond_stage_model|clip\w*|t5\w*?)[._]"
)
# Modules that FLUX.1 has and no FLUX.2, in the names of Black Forest Labs and diffusers, with dots or underscores.
_FLUX1 = re.compile(
    r"double_blocks[._]\d+[._](?:img|txt)_mod\b|double_blocks[._]\d+[._](?:img|txt)_mod_|single_blocks[._]\d+[._]modulation"
    r"|(?:^|[._])vector_in[._]|time_text_embed[._]"
    r"|transformer_blocks[._]\d+[._](?:norm|norm1|norm1_context)[._]linear|single_transformer_blocks[._]\d+[._]proj_"
    r"|transformer_blocks[._]\d+[._]ff(?:_context)?[._]net[._]|single_transformer_blocks[._]\d+[._]attn[._]to_[qkv]\b"
)
_SUPPORTED = (
    "only LoRA, DoRA, LoKr, LoHa, full-rank and diff updates of linear layers are supported, under the names of Black "
    "Forest Labs, diffusers, kohya or LyCORIS"
)
_NO_BIAS = "FLUX.2's linear layers have none; export the adapter without biases (PEFT: lora_bias=False, bias='none')"

# Patterns of keys with what they are, and what to do; the first match counts.
_EMBEDDING = (
    r"(^|\.)(bundle_emb|emb_params|string_to_param|learned_embeds)\b", "a trained embedding",
    "prompts here use no trained embeddings; export the adapter without the embedding",
)  # fmt: skip
_KINDS = (
    _EMBEDDING,
    (r"\.diff_b$", "a change of a bias", _NO_BIAS),
    (r"\.lora_(B|A|up|down)(\.[^.]+)?\.bias$", "the bias of a LoRA", _NO_BIAS),
    (r"\.lokr_t[12]$|\.hada_t[12]$|\.lora_mid\.weight$", "a tensor in Tucker form, for convolutions", _SUPPORTED),
    (r"\.(hada|oft|boft|ia3|glora)_", "a LyCORIS tensor", _SUPPORTED),
    (r"\.(weight|bias|scale)$", "a whole weight, as in a model checkpoint", _SUPPORTED),
)  # fmt: skip


def is_text_encoder(key: str) -> bool:
    """Return whether a tensor belongs to a text encoder."""
    return _TEXT_ENCODER.match(key) is not None


def is_flux1_key(key: str) -> bool:
    """Return whether a key names a module that FLUX.1 has and FLUX.2 lacks."""
    return _FLUX1.search(key) is not None


def foreign_tensors(keys: Sequence[str], module: str | None) -> AdapterRefused:
    """Return the error of tensors that belong to no update of a FLUX.2 layer.

    Args:
        keys: at least one.
        module: the layer that the first one names, if only that layer is unknown.
    """
    key = keys[0]
    flux1 = next((key for key in keys if is_flux1_key(key)), None)
    if flux1 is not None:
        return AdapterRefused(
            f"{flux1!r} matches no layer of FLUX.2, but FLUX.1 has it: the adapter was made for FLUX.1, and only "
            "FLUX.2 runs here; train it on a FLUX.2 model" + _others(len(keys) - 1)
        )
    for pattern, what, remedy in _KINDS if module is None else (_EMBEDDING,):
        if re.search(pattern, key):
            return AdapterRefused(f"{key!r} is {what}; {remedy}{_others(len(keys) - 1)}")
    if module is not None:
        return AdapterRefused(
            f"{key!r} matches no layer of FLUX.2: {module!r} is not one of its linear layers{_others(len(keys) - 1)}"
        )
    return AdapterRefused(f"{key!r} is not a tensor of an adapter; {_SUPPORTED}{_others(len(keys) - 1)}")


def text_encoder_tensors(keys: Sequence[str], *, only: bool) -> AdapterRefused:
    """Return the error of tensors of a text encoder.

    Args:
        only: whether the file holds no other tensors.
    """
    remedy = (
        "the file updates no layer of the transformer, so it cannot be used here"
        if only
        else "adapters change only the transformer here; export the adapter without its text-encoder layers"
    )
    count = "the only such tensor" if len(keys) == 1 else f"one of {len(keys)} such tensors"
    return AdapterRefused(f"{keys[0]!r} is a text-encoder tensor, {count} in the file; {remedy}")


def _others(count: int) -> str:
    return "" if not count else f" ({count} other {'tensor is' if count == 1 else 'tensors are'} refused too)"
