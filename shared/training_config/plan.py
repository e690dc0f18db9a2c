"""Turn an AI Toolkit training config into the requests that reproduce its sample previews.

All defaults, seeds, flags and placeholders are resolved in the requests.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shared.catalog import MODELS
from shared.errors import ConfigRefused, InvalidRequest
from shared.resolved_size import check_sizes
from shared.training_config.config_file import expect_mapping, read_process
from shared.training_config.sample_references import name_images, unused_images
from shared.training_config.samples import Sample, filled_prompt_bytes, read_entries, read_samples, read_trigger_word


@dataclass(frozen=True)
class ReplayPlan:
    """The requests that reproduce a config's samples.

    Attributes:
        requests: bodies for `POST /v1/inference`, one for each multiplier, because a request has only one.
        positions: for each sample, in the config's order, the indices of its request and of its prompt in the request.
        images: the values of the requests' fields for reference images, by the config's names for them.
        warnings: reasons why images may differ from the trainer's.
    """

    samples: tuple[Sample, ...]
    requests: tuple[dict[str, Any], ...]
    positions: tuple[tuple[int, int], ...]
    images: Mapping[str, str]
    warnings: tuple[str, ...]


def plan_replay(
    text: str,
    *,
    max_samples: int,
    max_text_bytes: int,
    lora: str | None = None,
    images: Mapping[str, str] = MappingProxyType({}),
) -> ReplayPlan:
    """Plan the replay of a config.

    Args:
        text: the config file's content, YAML or JSON.
        max_samples: most samples that a config may have.
        max_text_bytes: most bytes of UTF-8 that its prompts may have together, with names and trigger words filled in.
        lora: adapter path for the requests; None takes the trainer's `{name}/{name}.safetensors`.
        images: values of the requests' fields for reference images, by the config's names for them.

    Raises:
        ConfigRefused: the text is not a config with a FLUX.2 model and samples; the message names the key at fault.
        InvalidRequest: the config has too many samples, or too much text in its prompts.
        ReferencesNeeded: samples have reference images that are not in `images`.
    """
    name, process = read_process(text, max_bytes=max_text_bytes)
    model = _model(process)
    section = expect_mapping(process.get("sample"), "config.process[0].sample")
    entries = read_entries(section)
    if not entries:
        raise ConfigRefused("config.process[0].sample has no prompts and no samples")
    if len(entries) > max_samples:
        raise InvalidRequest(f"{len(entries)} samples; use at most {max_samples} in one config", field="config")
    trigger = read_trigger_word(process)
    # From lengths, before any prompt is built: aliases and trigger words multiply their sizes.
    check_sizes([filled_prompt_bytes(entry, trigger) for entry in entries], max_bytes=max_text_bytes, field="config")
    samples = tuple(read_samples(section, entries, trigger=trigger))
    values = name_images((found.image for sample in samples for found in sample.references), images)
    requests, positions = _group_by_multiplier(
        samples, model=model, lora=lora or f"{name}/{name}.safetensors", images=values
    )
    # The trainer merges the adapter only if all samples have the same multiplier, and never a DoRA.
    if len(requests) > 1 or _is_dora(process):
        requests = tuple({**request, "adapter_mode": "live"} for request in requests)
    unused = unused_images(section, entries, [sample.references for sample in samples])
    return ReplayPlan(samples, requests, positions, values, (*_warnings(process, section), *unused))


def _model(process: Mapping[str, Any]) -> str:
    arch = expect_mapping(process.get("model"), "config.process[0].model").get("arch")
    # The trainer trains no distilled model.
    trained = [model.id for model in MODELS.values() if model.distilled_from is None]
    if not isinstance(arch, str) or arch not in trained:
        raise ConfigRefused(
            f"config.process[0].model.arch is {reprlib.repr(arch)}, which is not served; use one of: "
            f"{', '.join(trained)}"
        )
    return arch


def _group_by_multiplier(
    samples: Sequence[Sample], *, model: str, lora: str, images: Mapping[str, str]
) -> tuple[tuple[dict[str, Any], ...], tuple[tuple[int, int], ...]]:
    requests: dict[float, dict[str, Any]] = {}
    numbers: dict[float, int] = {}
    positions = []
    for sample in samples:
        multiplier = sample.network_multiplier
        # Dictionaries keep the order in which multipliers first occur, so requests are numbered the same way each time.
        request = requests.setdefault(
            multiplier,
            {"model": model, "prompts": [], "loras": [{"path": lora, "network_multiplier": multiplier}]},
        )
        positions.append((numbers.setdefault(multiplier, len(numbers)), len(request["prompts"])))
        request["prompts"].append(
            {
                "prompt": sample.prompt,
                "neg": sample.neg,
                "width": sample.width,
                "height": sample.height,
                "seed": sample.seed,
                "sample_steps": sample.sample_steps,
                "guidance_scale": sample.guidance_scale,
                **{found.field: images[found.image] for found in sample.references},
            }
        )
    return tuple(requests.values()), tuple(positions)


def _warnings(process: Mapping[str, Any], section: Mapping[str, Any]) -> Iterator[str]:
    if process["model"].get("quantize"):
        yield (
            "model.quantize is on: the trainer previewed with a quantised base and an unmerged adapter, so a bf16 "
            "pipeline cannot give the same pixels"
        )
    if section.get("format", "jpg") == "jpg":
        yield "sample.format is jpg: the trainer's files are lossily compressed, so pixels differ from the render"
    if section.get("seed") == -1:
        yield "sample.seed is -1: the trainer drew random seeds, which the config does not record"


def _is_dora(process: Mapping[str, Any]) -> bool:
    network = process.get("network")
    return isinstance(network, dict) and str(network.get("type", "")).lower() == "dora"
