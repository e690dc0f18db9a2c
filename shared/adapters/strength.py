"""Find the scale of each update: alpha / rank, wherever the file's trainer stored alpha.

Trainers store alpha as a tensor of each layer, or as a number in the header. A reader that misses the number renders at
a wrong strength, and nothing shows it. kohya's `ss_network_alpha` is not such a source: musubi-tuner's converter
multiplies alpha into the factors and leaves the entry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.adapters.name_patterns import NamePatterns
from shared.adapters.peft_methods import refuse_other_methods
from shared.errors import AdapterRefused

#: Where alpha was found. `none`: nowhere, so the scale is 1. `unused`: the scale is 1 although an alpha is stored,
#: because the update has no rank, by which alpha would be divided.
Source = Literal["tensor", "lora_adapter_metadata", "lora_alpha", "adapter_config.json", "none", "unused"]

#: PEFT stores an adapter as two files in one folder.
PEFT_FILE = "adapter_model.safetensors"
CONFIG_NAME: Literal["adapter_config.json"] = "adapter_config.json"
HEADER_CONFIG: Literal["lora_adapter_metadata"] = "lora_adapter_metadata"
#: Entries of `__metadata__` that state alpha as a number; some writers put the component's name before it.
PLAIN_ALPHAS = ("lora_alpha", "transformer.lora_alpha", "network_alpha", "alpha")
PLAIN_RANKS = ("r", "transformer.r", "lora_rank")
# An alpha of bfloat16 has three digits.
_SAME = 0.005
_KINDS = ("LORA", "LOHA")
_CONFIG_ENTRIES = (
    "peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
)  # fmt: skip


@dataclass(frozen=True)
class Strength:
    """The factor of an update, apart from the job's multiplier.

    Attributes:
        scale: None if it depends on the layer's alpha tensor, whose value has not been read.
    """

    scale: float | None = 1.0
    source: Source = "none"


@dataclass(frozen=True)
class StatedAlpha:
    """Alpha and rank as the file's header states them.

    Attributes:
        rank: None if only alpha is stated.
        uses_sqrt: the scale is alpha / sqrt(rank), as with PEFT's `use_rslora`.
        uses_dora: the config says that the layers have magnitudes.
    """

    source: Source
    alpha: float
    rank: float | None
    alphas: NamePatterns
    ranks: NamePatterns
    uses_sqrt: bool = False
    uses_dora: bool = False

    def scales(self, ranks: Mapping[str, int], keys: Mapping[str, str]) -> dict[str, float]:
        """Return the scale of each module.

        Args:
            ranks: the tensors' rank, by module name.
            keys: a key of each module, for messages.

        Raises:
            AdapterRefused: the stated rank is not the tensors', or alpha_pattern has other names than the file.
        """
        alphas, stated = self.alphas.numbers_of(ranks), self.ranks.numbers_of(ranks)
        if self.alphas and ranks and not alphas:
            # A tool renamed the layers and kept the config; the layers that the patterns mean are unknown.
            raise AdapterRefused(
                f"alpha_pattern in {self.source} names none of the file's layers, such as {next(iter(ranks))!r}; "
                "export the adapter again with its own config"
            )
        for name, rank in ranks.items():
            says = stated.get(name, self.rank)
            if says is not None and says != rank:
                raise AdapterRefused(
                    f"{keys[name]!r} has rank {rank}, but {self.source} says {says:g}; export the adapter again with "
                    "its own config"
                )
        return {
            name: alphas.get(name, self.alpha) / (math.sqrt(rank) if self.uses_sqrt else rank)
            for name, rank in ranks.items()
        }


def stated_alphas(metadata: Mapping[str, str], config: str | None = None) -> list[StatedAlpha]:
    """Return every statement of alpha outside of the tensors.

    Args:
        config: text of `adapter_config.json`; None without one.

    Raises:
        AdapterRefused: a statement cannot be read.
    """
    found = [
        _peft_config(metadata[HEADER_CONFIG], HEADER_CONFIG) if metadata.get(HEADER_CONFIG) else None,
        _plain_alpha(metadata),
        _peft_config(config, CONFIG_NAME) if config is not None else None,
    ]
    return [stated for stated in found if stated is not None]


def resolve_strengths(
    ranks: Mapping[str, int],
    *,
    keys: Mapping[str, str],
    tensor_alphas: Mapping[str, float | None],
    stated: Sequence[StatedAlpha],
) -> dict[str, Strength]:
    """Return the strength of each module that has a rank.

    Args:
        ranks: the tensors' rank, by module name as the file's tool knows it.
        keys: a key of each module, for messages.
        tensor_alphas: modules with an alpha tensor, and its value where it is known.

    Raises:
        AdapterRefused: two sources give different scales, or an alpha is not finite.
    """
    strengths = dict.fromkeys(ranks, Strength())
    for name, alpha in tensor_alphas.items():
        if alpha is not None and not math.isfinite(alpha):
            raise AdapterRefused(f"the alpha of {keys[name]!r} is {alpha}, which is not finite; the file is damaged")
        strengths[name] = Strength(None if alpha is None else alpha / ranks[name], "tensor")
    known: dict[str, tuple[Source, float]] = {
        name: (strength.source, strength.scale)
        for name, strength in strengths.items()
        if strength.source == "tensor" and strength.scale is not None
    }
    for statement in stated:
        for name, scale in statement.scales(ranks, keys).items():
            source, other = known.setdefault(name, (statement.source, scale))
            if not math.isclose(scale, other, rel_tol=_SAME):
                raise AdapterRefused(
                    f"{keys[name]!r}: {_describe(source)} gives the scale {other:.6g}, but {statement.source} gives "
                    f"{scale:.6g}; {_remedy(statement.source)}"
                )
            if strengths[name].source == "none":
                strengths[name] = Strength(scale, statement.source)
    return strengths


def _remedy(source: Source) -> str:
    if source == CONFIG_NAME:
        return "remove the wrong one: delete adapter_config.json if it belongs to another file, or export both again"
    return "remove the wrong one from the file"


def _describe(source: Source) -> str:
    return "its alpha tensor" if source == "tensor" else source


def _plain_alpha(metadata: Mapping[str, str]) -> StatedAlpha | None:
    """Read the entries that state one number."""
    found = {key: _parse_number(metadata[key], key) for key in PLAIN_ALPHAS if metadata.get(key)}
    if len(set(found.values())) > 1:
        shown = " and ".join(f"{key} {value:g}" for key, value in found.items())
        raise AdapterRefused(f"the header's metadata contradicts itself: {shown}; remove the wrong one from the file")
    if not found:
        return None
    rank = next((_parse_number(metadata[key], key) for key in PLAIN_RANKS if metadata.get(key)), None)
    return StatedAlpha("lora_alpha", next(iter(found.values())), rank, _none("alpha"), _none("rank"))


def _parse_number(text: str, key: str) -> float:
    try:
        return _number(float(text), key)
    except ValueError as error:
        raise AdapterRefused(
            f"the header's metadata says {key} {text[:40]!r}, which is not a number; write the number that the "
            "adapter was trained with"
        ) from error


def states_alpha(metadata: Mapping[str, str], config: str | None) -> bool:
    """Return whether anything outside of the tensors may state alpha; see `stated_alphas`."""
    return config is not None or any(metadata.get(key) for key in (HEADER_CONFIG, *PLAIN_ALPHAS))


def read_config(text: str, source: Source) -> dict[str, Any]:
    """Return the entries of a PEFT config that decide the scales, without those that say nothing.

    Raises:
        AdapterRefused: the text is no config.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"{source} is not valid JSON; export the adapter again") from error
    if not isinstance(config, dict):
        raise AdapterRefused(f"{source} is not a JSON object; export the adapter again")
    refuse_other_methods(config, source)

    # Some writers put the component's name before a key.
    found = {name: config.get(f"transformer.{name}", config.get(name)) for name in _CONFIG_ENTRIES}
    return {name: value for name, value in found.items() if value is not None and value is not False and value != {}}


def _peft_config(text: str, source: Source) -> StatedAlpha | None:
    read = read_config(text, source).get
    kind = read("peft_type")
    if kind is not None and kind not in _KINDS:
        raise AdapterRefused(f"{source} describes a PEFT adapter of type {str(kind)[:40]!r}; use {' or '.join(_KINDS)}")
    alpha = read("lora_alpha") if read("lora_alpha") is not None else read("alpha")
    if alpha is None:
        if read("r") is not None:
            raise AdapterRefused(
                f"{source} states the rank, but no lora_alpha, so the strength is unknown; export the adapter again "
                "with its whole config"
            )
        return None
    return StatedAlpha(
        source,
        _number(alpha, f"lora_alpha in {source}"),
        None if read("r") is None else _number(read("r"), f"r in {source}"),
        _patterns(read("alpha_pattern"), f"alpha_pattern in {source}"),
        _patterns(read("rank_pattern"), f"rank_pattern in {source}"),
        uses_sqrt=_flag(read("use_rslora"), f"use_rslora in {source}"),
        uses_dora=_flag(read("use_dora"), f"use_dora in {source}"),
    )


def _patterns(value: Any, where: str) -> NamePatterns:
    if value is None:
        return _none(where)
    if not isinstance(value, dict):
        raise AdapterRefused(f"{where} is not an object of numbers by module name")
    return NamePatterns({name: _number(number, where) for name, number in value.items()}, where=where)


def _none(where: str) -> NamePatterns:
    return NamePatterns({}, where=where)


def _number(value: Any, what: str) -> float:
    # `type`, not isinstance: True is an int too.
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise AdapterRefused(f"{what} is {str(value)[:40]!r}, not a finite number")
    return float(value)


def _flag(value: Any, what: str) -> bool:
    if value not in (None, True, False):
        raise AdapterRefused(f"{what} is {str(value)[:40]!r}, not true or false")
    return bool(value)
