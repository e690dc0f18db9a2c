"""Resolve a config's sample section into complete samples, by the trainer's rules.

A sample without a field takes the section's value. Seeds walk or persist. `[trigger]` is filled in, and the text of a
prompt from its first `--` on holds flags.

Source:
    ai-toolkit's SampleConfig, GenerateImageConfig and BaseSDTrainProcess.sample (toolkit/config_modules.py,
    jobs/process/BaseSDTrainProcess.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import ConfigRefused
from shared.prompt import TRAINER_FLAGS
from shared.resolve import TRIGGER
from shared.resolved_size import filled_bytes
from shared.training_config.config_file import expect_list, expect_mapping, expect_number, expect_text
from shared.training_config.sample_references import FLAG, SampleReference, read_references

_MAX_TRIGGER_LENGTH = 1000
_WHERE = "config.process[0].sample"
# The trainer raises smaller sizes to this size.
_MIN_PX = 64

_FLAGS = {**TRAINER_FLAGS, FLAG: FLAG}

# The trainer's own defaults, which differ from the API's. A value in the config is read as the type of its default.
_DEFAULTS: dict[str, Any] = {
    "width": 512,
    "height": 512,
    "neg": "",
    "seed": 0,
    "guidance_scale": 7.0,
    "sample_steps": 20,
    "network_multiplier": 1.0,
}


@dataclass(frozen=True)
class Sample:
    """One preview, with all values that determine its pixels."""

    prompt: str
    neg: str
    width: int
    height: int
    seed: int
    sample_steps: int
    guidance_scale: float
    network_multiplier: float
    references: tuple[SampleReference, ...]


def read_trigger_word(process: Mapping[str, Any]) -> str | None:
    where = "config.process[0].trigger_word"
    if (word := process.get("trigger_word")) is None:
        return None
    if len(text := expect_text(word, where)) > _MAX_TRIGGER_LENGTH:
        raise ConfigRefused(f"{where} has {len(text)} characters; use at most {_MAX_TRIGGER_LENGTH}")
    return text


def read_entries(section: Mapping[str, Any]) -> list[Any]:
    """Return one entry for each sample, as written.

    Raises:
        ConfigRefused: the section's samples or prompts are not a list.
    """
    if "samples" in section:
        return expect_list(section["samples"], f"{_WHERE}.samples")
    # The older form, which the trainer still reads: a list of prompts only.
    return [{"prompt": prompt} for prompt in expect_list(section.get("prompts") or [], f"{_WHERE}.prompts")]


def filled_prompt_bytes(entry: object, trigger: str | None) -> int:
    """Return the bytes of UTF-8 of an entry's prompt with its trigger word filled in; 0 if it is not a text."""
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    return filled_bytes(prompt, TRIGGER, trigger) if isinstance(prompt, str) else 0


def read_samples(section: Mapping[str, Any], entries: Sequence[Any], *, trigger: str | None) -> Iterator[Sample]:
    """Yield the section's samples in order.

    Args:
        entries: see `read_entries`.

    Raises:
        ConfigRefused: a value has another type; the message names its key.
    """
    defaults = {**_DEFAULTS, **_read_fields(section, _WHERE)}
    start = seed = defaults["seed"]
    for index, entry in enumerate(entries):
        place = f"{_WHERE}.samples[{index}]"
        given = expect_mapping(entry, place)
        own = _read_fields(given, place)
        if section.get("walk_seed"):
            seed = start + index
        # Without walk_seed a sample's own seed persists for the samples after it: the trainer's rule.
        seed = own.get("seed", seed)
        prompt = expect_text(given.get("prompt"), f"{place}.prompt")
        words, flags = _split_flags(prompt if trigger is None else prompt.replace(TRIGGER, trigger))
        fields = {**defaults, **own, "seed": seed, **_read_fields(flags, place)}
        sizes = {side: max(_MIN_PX, fields[side]) for side in ("width", "height")}
        yield Sample(words, **{**fields, **sizes}, references=tuple(read_references(given, flags, place)))


def _split_flags(prompt: str) -> tuple[str, dict[str, str]]:
    """Split a prompt from its flags; of a repeated flag the last one counts."""
    words, *flags = prompt.strip().split("--")
    pairs = (flag.partition(" ") for flag in flags)
    # The trainer's other flags have no effect on FLUX.2, and it ignores unknown flags; all are cut from the prompt.
    return words.strip(), {_FLAGS[name.strip()]: value.strip() for name, _, value in pairs if name.strip() in _FLAGS}


def _read_fields(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the sample fields that a section, a sample or a prompt's flags give."""
    return {
        key: _read_field(given[key], type(default), f"{where}.{key}")
        for key, default in _DEFAULTS.items()
        if given.get(key) is not None
    }


def _read_field(value: Any, kind: type, where: str) -> Any:
    if kind is str:
        return expect_text(value or "", where)
    return expect_number(value, int if kind is int else float, where)
