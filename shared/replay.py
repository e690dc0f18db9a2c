"""Turn an AI Toolkit training config into the requests that reproduce its sample previews.

The rules are the trainer's: what a sample leaves out comes from the sample section, seeds walk or stick, `[name]` and
`[trigger]` are filled in, and everything from the first `--` of a prompt on is flags. Prompts are resolved here
completely, so the API gets plain fields.

Source:
    ai-toolkit's SampleConfig, GenerateImageConfig and BaseSDTrainProcess.sample (toolkit/config_modules.py,
    jobs/process/BaseSDTrainProcess.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from shared.catalog import MODELS
from shared.errors import RequestError

# The trainer's own defaults, which are not the API's.
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


class ConfigRefused(RequestError):
    """The training config cannot be replayed; the message names the key."""

    code = "INVALID_CONFIG"


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


def plan(text: str | bytes, *, lora: str | None = None) -> Replay:
    """Plan the replay of a config.

    Args:
        text: the config file's content, YAML or JSON, in UTF-8 if it is bytes.
        lora: adapter path for the requests; None takes the trainer's `{name}/{name}.safetensors`.

    Raises:
        ConfigRefused: not a config with a FLUX.2 model and a sample section; names the key at fault.
    """
    name, process = _process(text)
    model = _model(process)
    section = _mapping(process.get("sample"), "config.process[0].sample")
    samples = tuple(_samples(section, trigger=process.get("trigger_word")))
    if not samples:
        raise ConfigRefused("config.process[0].sample has no prompts and no samples")
    requests, places = _group(samples, model=model, lora=lora or f"{name}/{name}.safetensors")
    # The trainer merges only if all samples share one multiplier, and never a DoRA.
    if len(requests) > 1 or _is_dora(process):
        requests = tuple({**request, "adapter_mode": "live"} for request in requests)
    return Replay(samples, requests, places, tuple(_warnings(process, section)))


def _process(text: str | bytes) -> tuple[str, Mapping[str, Any]]:
    try:
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigRefused(f"not YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigRefused(f"not YAML: {' '.join(str(error).split())[:200]}") from error
    config = _mapping(_mapping(document, "the file").get("config"), "config")
    name = config.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigRefused("config.name is missing")
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
    if arch not in MODELS:
        raise ConfigRefused(f"config.process[0].model.arch is {arch!r}; served are: {', '.join(MODELS)}")
    return str(arch)


def _samples(section: Mapping[str, Any], *, trigger: str | None) -> Iterator[Sample]:
    raw = section.get("samples", [{"prompt": prompt} for prompt in section.get("prompts") or []])
    if not isinstance(raw, list):
        raise ConfigRefused("config.process[0].sample.samples is not a list")
    defaults = {**_DEFAULTS, **{key: section[key] for key in _DEFAULTS if section.get(key) is not None}}
    start = seed = defaults["seed"]
    for index, entry in enumerate(raw):
        where = f"config.process[0].sample.samples[{index}]"
        given = _mapping(entry, where)
        if section.get("walk_seed"):
            seed = start + index
        # Without walk_seed a sample's own seed stays for those after it: the trainer's rule.
        seed = seed if given.get("seed") is None else given["seed"]
        fields = {**defaults, **{key: given[key] for key in _DEFAULTS if given.get(key) is not None}, "seed": seed}
        words, flags = _split(_prompt(given.get("prompt"), trigger, where))
        yield _sample(words, {**fields, **flags}, where)


def _prompt(prompt: object, trigger: str | None, where: str) -> str:
    if not isinstance(prompt, str):
        raise ConfigRefused(f"{where}.prompt is {prompt!r}, not text")
    return prompt if trigger is None else prompt.replace("[trigger]", trigger)


def _split(prompt: str) -> tuple[str, dict[str, str]]:
    """Split a prompt from its flags; a later flag wins."""
    words, *flags = prompt.strip().split("--")
    pairs = (flag.partition(" ") for flag in flags)
    return words.strip(), {_FLAGS[name.strip()]: value.strip() for name, _, value in pairs if name.strip() in _FLAGS}


def _sample(prompt: str, fields: Mapping[str, Any], where: str) -> Sample:
    try:
        return Sample(
            prompt=prompt,
            neg=str(fields["neg"] or ""),
            width=max(64, int(fields["width"])),
            height=max(64, int(fields["height"])),
            seed=int(fields["seed"]),
            sample_steps=int(fields["sample_steps"]),
            guidance_scale=float(fields["guidance_scale"]),
            network_multiplier=float(fields["network_multiplier"]),
        )
    except (TypeError, ValueError) as error:
        raise ConfigRefused(f"{where}: {error}") from error


def _group(
    samples: Sequence[Sample], *, model: str, lora: str
) -> tuple[tuple[dict[str, Any], ...], tuple[tuple[int, int], ...]]:
    requests: dict[float, dict[str, Any]] = {}
    places = []
    for sample in samples:
        multiplier = sample.network_multiplier
        request = requests.setdefault(
            multiplier,
            {"model": model, "prompts": [], "loras": [{"path": lora, "network_multiplier": multiplier}]},
        )
        places.append((list(requests).index(multiplier), len(request["prompts"])))
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
