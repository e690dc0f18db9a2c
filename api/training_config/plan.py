"""Turn an AI Toolkit training config into the requests that reproduce its sample previews.

The rules are the trainer's: what a sample leaves out comes from the sample section, seeds walk or stick, `[name]` and
`[trigger]` are filled in, and everything from the first `--` of a prompt on is flags. Prompts are resolved here
completely, so the API gets plain fields.

Source:
    ai-toolkit's SampleConfig, GenerateImageConfig and BaseSDTrainProcess.sample (toolkit/config_modules.py,
    jobs/process/BaseSDTrainProcess.py)
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from api.training_config import yaml_text
from shared.catalog import MODELS
from shared.errors import ConfigRefused

# Each stands wherever a prompt has its placeholder, so a long one would multiply the file. A file's name ends at 255.
_MAX_NAME = 255
_MAX_TRIGGER = 1000

# The trainer's own defaults, which are not the API's; a value given instead is read as the same type.
_DEFAULTS: dict[str, Any] = {
    "width": 512,
    "height": 512,
    "neg": "",
    "seed": 0,
    "guidance_scale": 7.0,
    "sample_steps": 20,
    "network_multiplier": 1.0,
}
# The trainer's other flags have no effect on FLUX.2, and unknown ones none anywhere; all leave the prompt.
_FLAGS = {
    "w": "width",
    "h": "height",
    "d": "seed",
    "seed": "seed",
    "s": "sample_steps",
    "steps": "sample_steps",
    "l": "guidance_scale",
    "cfg": "guidance_scale",
    "m": "network_multiplier",
    "network_multiplier": "network_multiplier",
    "n": "neg",
}


@dataclass(frozen=True)
class Sample:
    """One preview, with everything that decides it."""

    prompt: str
    neg: str
    width: int
    height: int
    seed: int
    sample_steps: int
    guidance_scale: float
    network_multiplier: float


@dataclass(frozen=True)
class Replay:
    """What to submit.

    Attributes:
        requests: bodies for `POST /v1/inference`, one for each multiplier, since a request has one.
        places: for each sample in the config's order, which request and which of its prompts it became.
        warnings: why the result may differ from the trainer's picture.
    """

    samples: tuple[Sample, ...]
    requests: tuple[dict[str, Any], ...]
    places: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...]


def plan(text: str, *, lora: str | None = None) -> Replay:
    """Plan the replay of a config.

    Args:
        text: the config file's content, YAML or JSON.
        lora: adapter path for the requests; None takes the trainer's `{name}/{name}.safetensors`.

    Raises:
        ConfigRefused: not a config with a FLUX.2 model and a sample section; names the key at fault.
    """
    name, process = _process(text)
    model = _model(process)
    section = _mapping(process.get("sample"), "config.process[0].sample")
    samples = tuple(_samples(section, trigger=_trigger(process)))
    if not samples:
        raise ConfigRefused("config.process[0].sample has no prompts and no samples")
    requests, places = _group(samples, model=model, lora=lora or f"{name}/{name}.safetensors")
    # The trainer merges only if all samples share one multiplier, and never a DoRA.
    if len(requests) > 1 or _is_dora(process):
        requests = tuple({**request, "adapter_mode": "live"} for request in requests)
    return Replay(samples, requests, places, tuple(_warnings(process, section)))


def _process(text: str) -> tuple[str, Mapping[str, Any]]:
    try:
        document = yaml_text.load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigRefused(f"not YAML that can be read{line}: {str(error.problem)[:200]}") from error
    except yaml.YAMLError as error:
        raise ConfigRefused(f"not YAML that can be read: {' '.join(str(error).split())[:200]}") from error
    config = _mapping(_mapping(document, "the file").get("config"), "config")
    name = config.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigRefused("config.name is missing or not text")
    if len(name) > _MAX_NAME or "[trigger]" in name:
        raise ConfigRefused(f"config.name is {reprlib.repr(name)}; at most {_MAX_NAME} characters, and no [trigger]")
    processes = config.get("process")
    if not isinstance(processes, list) or not processes:
        raise ConfigRefused("config.process is not a list of processes")
    filled: Mapping[str, Any] = _mapping(_with_name(processes[0], name), "config.process[0]")
    return name, filled


def _with_name(value: Any, name: str) -> Any:
    """Fill `[name]` into every string, as the trainer does when it reads a config."""
    if isinstance(value, str):
        return value.replace("[name]", name)
    if isinstance(value, list):
        return [_with_name(entry, name) for entry in value]
    if isinstance(value, dict):
        return {key: _with_name(entry, name) for key, entry in value.items()}
    return value


def _model(process: Mapping[str, Any]) -> str:
    arch = _mapping(process.get("model"), "config.process[0].model").get("arch")
    if not isinstance(arch, str) or arch not in MODELS:
        raise ConfigRefused(f"config.process[0].model.arch is {reprlib.repr(arch)}; served are: {', '.join(MODELS)}")
    return arch


def _trigger(process: Mapping[str, Any]) -> str | None:
    where = "config.process[0].trigger_word"
    if (word := process.get("trigger_word")) is None:
        return None
    if len(text := _text(word, where)) > _MAX_TRIGGER:
        raise ConfigRefused(f"{where} has {len(text)} characters; at most {_MAX_TRIGGER}")
    return text


def _samples(section: Mapping[str, Any], *, trigger: str | None) -> Iterator[Sample]:
    where = "config.process[0].sample"
    defaults = {**_DEFAULTS, **_fields(section, where)}
    start = seed = defaults["seed"]
    for index, entry in enumerate(_entries(section, where)):
        place = f"{where}.samples[{index}]"
        given = _mapping(entry, place)
        own = _fields(given, place)
        if section.get("walk_seed"):
            seed = start + index
        # Without walk_seed a sample's own seed stays for those after it: the trainer's rule.
        seed = own.get("seed", seed)
        prompt = _text(given.get("prompt"), f"{place}.prompt")
        words, flags = _split(prompt if trigger is None else prompt.replace("[trigger]", trigger))
        fields = {**defaults, **own, "seed": seed, **_fields(flags, place)}
        yield Sample(words, **{**fields, "width": max(64, fields["width"]), "height": max(64, fields["height"])})


def _entries(section: Mapping[str, Any], where: str) -> list[Any]:
    if "samples" in section:
        return _list(section["samples"], f"{where}.samples")
    return [{"prompt": prompt} for prompt in _list(section.get("prompts") or [], f"{where}.prompts")]


def _split(prompt: str) -> tuple[str, dict[str, str]]:
    """Split a prompt from its flags; a later flag wins."""
    words, *flags = prompt.strip().split("--")
    pairs = (flag.partition(" ") for flag in flags)
    return words.strip(), {_FLAGS[name.strip()]: value.strip() for name, _, value in pairs if name.strip() in _FLAGS}


def _fields(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read what a section, a sample or a prompt's flags say of a sample."""
    return {
        key: _read(given[key], type(default), f"{where}.{key}")
        for key, default in _DEFAULTS.items()
        if given.get(key) is not None
    }


def _read(value: Any, kind: type, where: str) -> Any:
    if kind is str:
        return _text(value or "", where)
    wanted = "a whole number" if kind is int else "a finite number"
    try:
        number = kind(value)
        finite = math.isfinite(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not {wanted}") from error
    if not finite:
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not {wanted}")
    return number


def _group(
    samples: Sequence[Sample], *, model: str, lora: str
) -> tuple[tuple[dict[str, Any], ...], tuple[tuple[int, int], ...]]:
    requests: dict[float, dict[str, Any]] = {}
    numbers: dict[float, int] = {}
    places = []
    for sample in samples:
        multiplier = sample.network_multiplier
        request = requests.setdefault(
            multiplier,
            {"model": model, "prompts": [], "loras": [{"path": lora, "network_multiplier": multiplier}]},
        )
        places.append((numbers.setdefault(multiplier, len(numbers)), len(request["prompts"])))
        request["prompts"].append(
            {
                "prompt": sample.prompt,
                "neg": sample.neg,
                "width": sample.width,
                "height": sample.height,
                "seed": sample.seed,
                "sample_steps": sample.sample_steps,
                "guidance_scale": sample.guidance_scale,
            }
        )
    return tuple(requests.values()), tuple(places)


def _warnings(process: Mapping[str, Any], section: Mapping[str, Any]) -> Iterator[str]:
    if process["model"].get("quantize"):
        yield (
            "model.quantize is on: the trainer previewed on a quantised base with the adapter live, which a bf16 "
            "pipeline cannot equal to the pixel"
        )
    if section.get("format", "jpg") == "jpg":
        yield "sample.format is jpg: the trainer's files went through lossy compression"
    if section.get("seed") == -1:
        yield "sample.seed is -1: the trainer drew random seeds, which the config does not hold"


def _is_dora(process: Mapping[str, Any]) -> bool:
    network = process.get("network")
    return isinstance(network, dict) and str(network.get("type", "")).lower() == "dora"


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigRefused(f"{where} is missing or not a mapping")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not a list")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigRefused(f"{where} is {reprlib.repr(value)}, not text")
    return value
