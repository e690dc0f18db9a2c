"""Explain why a tensor of an adapter file is refused: the real reason, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shared.adapters.base_model import StatedBase
from shared.adapters.names import PREFIX, parse_target
from shared.adapters.other_models import find_other_model
from shared.errors import AdapterRefused

_TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.|model\.|transformer\.|lycoris_|lora_)*"
    r"(?:text_encoders?|te\d?|text_encoder_?\d|text_model|conditioner|cond_stage_model|clip\w*|t5\w*?|"
    r"(?:qwen|mistral)[\w-]*)[._]"
    # The text encoders of FLUX.2 are language models, whose layers PEFT names without the encoder.
    r"|(?:[\w.]*[._])?layers[._]\d+[._](?:self_attn|mlp)[._]"
)
_SUPPORTED = (
    "only LoRA, DoRA, LoKr, LoHa, full-rank and diff updates of linear layers are supported, under the names of Black "
    "Forest Labs, diffusers, kohya or LyCORIS"
)
_NO_BIAS = "FLUX.2's linear layers have none; export the adapter without biases (PEFT: lora_bias=False, bias='none')"
_ONLY_FLUX2 = "only FLUX.2 runs here; train the adapter on a FLUX.2 model"

# Patterns of keys with what they are, and what to do; the first match counts.
_FOREIGN_MODULES = (
    (
        r"(^|\.)(bundle_emb|emb_params|string_to_param|learned_embeds)\b", "a trained embedding",
        "prompts here use no trained embeddings; export the adapter without the embedding",
    ),
    (
        r"^(first_stage_model|vae)[._]", "a tensor of an autoencoder",
        "adapters change only the transformer here; export the adapter without the autoencoder",
    ),
    (
        r"\.[wb]_norm$|[._](query_norm|key_norm|norm_(added_)?[qk])\.(diff|scale|weight)$",
        "a change of a normalisation",
        "only linear layers can be updated; export the adapter without normalisations (LyCORIS: train_norm=False)",
    ),
)  # fmt: skip
_FOREIGN_TENSORS = (
    (r"\.diff_b$", "a change of a bias", _NO_BIAS),
    (r"\.lora_(B|A|up|down)(\.[^.]+)?\.bias$", "the bias of a LoRA", _NO_BIAS),
    (r"\.lokr_t[12]$|\.hada_t[12]$|\.lora_mid\.weight$", "a tensor in Tucker form, for convolutions", _SUPPORTED),
    (r"\.(hada|oft|boft|ia3|glora)_", "a LyCORIS tensor", _SUPPORTED),
    (
        r"\.(weight|bias|scale)$", "a whole weight, as in a model checkpoint",
        f"{_SUPPORTED}; extract a LoRA from the checkpoint",
    ),
)  # fmt: skip


def is_text_encoder(key: str) -> bool:
    """Return whether a tensor belongs to a text encoder."""
    return _TEXT_ENCODER.match(key) is not None


def describe_other_base(stated: StatedBase) -> str:
    """Return a clause that names the stated base, which is no FLUX.2 model, and what to do."""
    name = "FLUX.1" if stated.is_flux1 else "no FLUX.2 model"
    return f"the adapter was trained on {stated.spelling!r} ({stated.key}); that is {name}, and {_ONLY_FLUX2}"


def made_for_flux1(key: str) -> AdapterRefused:
    """Return the error of an update that fits FLUX.1 and no FLUX.2."""
    return AdapterRefused(
        f"{key!r} fits a layer of FLUX.1, and no FLUX.2 has such a layer: the adapter was made for FLUX.1, and "
        f"{_ONLY_FLUX2}"
    )


def foreign_tensors(keys: Sequence[str], module: str | None, stated: StatedBase | None) -> AdapterRefused:
    """Return the error of tensors that belong to no update of a FLUX.2 layer.

    Args:
        keys: at least one.
        module: the layer that the first one names, if only that layer is unknown.
        stated: the base that the file's metadata names.
    """
    others = _others(len(keys) - 1)
    other = find_other_model(keys)
    if other is not None:
        return AdapterRefused(
            f"{other.key!r} matches no layer of FLUX.2, but {other.family} has it: the adapter was made for "
            f"{other.family}, and {_ONLY_FLUX2}{others}"
        )
    key = keys[0]
    if stated is not None and stated.is_other_family:
        return AdapterRefused(f"{key!r} matches no layer of FLUX.2; {describe_other_base(stated)}{others}")
    for pattern, what, remedy in (*_FOREIGN_MODULES, *(_FOREIGN_TENSORS if module is None else ())):
        if re.search(pattern, key):
            return AdapterRefused(f"{key!r} is {what}; {remedy}{others}")
    if module is not None:
        return AdapterRefused(f"{key!r} matches no layer of FLUX.2: {_describe_module(module)}{others}")
    return AdapterRefused(f"{key!r} is not a tensor of an adapter; {_SUPPORTED}{others}")


def _describe_module(module: str) -> str:
    """Say what is wrong with a module's name, and what to do."""
    start = re.search(r"(?:single_|double_|transformer_)", module)
    if start is not None and parse_target(module[start.start() :]) is not None:
        return f"the prefix {module[: start.start()]!r} is unknown; rename its keys to begin with {PREFIX!r}"
    return (
        f"{module!r} is not one of its linear layers; train the adapter on a FLUX.2 model, or export it without this "
        "layer"
    )


def text_encoder_tensors(keys: Sequence[str], *, only: bool) -> AdapterRefused:
    """Return the error of tensors of a text encoder.

    Args:
        only: whether the file holds no other tensors.
    """
    remedy = (
        "the file updates no layer of the transformer, so it cannot be used here"
        if only
        else "adapters change only the transformer here; to use the rest of the file, add "
        '"ignore": ["text_encoder"] to its entry of loras (flux2 convert: --ignore-text-encoder)'
    )
    count = "the only such tensor" if len(keys) == 1 else f"one of {len(keys)} such tensors"
    return AdapterRefused(f"{keys[0]!r} is a text-encoder tensor, {count} in the file; {remedy}")


def _others(count: int) -> str:
    return "" if not count else f" ({count} other {'tensor is' if count == 1 else 'tensors are'} refused too)"
