"""Compare our results with the goldens: one check for each type of case.

An exception in a check is a failure of its case. Results that every CPU computes alike must be equal: noise, the
timesteps that reach the model, merged weights, token ids. All other results must stay within the manifest's tolerances,
because kernels differ between machines (docs/verify.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor

from shared.adapters.names import parse_target, strip_prefix
from shared.adapters.suffixes import split_key
from shared.errors import RequestError
from shared.job import AdapterMode
from worker.lora.hot_swap import AdapterSwapper
from worker.model.components import Components
from worker.model.precision import PRECISIONS
from worker.rendering.denoise import TransformerInputs
from worker.rendering.engine import Engine
from worker.rendering.latents import PIXELS, noise
from worker.verify.golden_models import GoldenModels, adapter_ref, bfl_weights
from worker.verify.goldens import Case, load_embeds
from worker.verify.measures import Measure, equal, measure, same_bits
from worker.verify.outcome import CaseType
from worker.verify.prompt_checks import check_prompt_to_image, check_text
from worker.verify.reference_checks import check_references
from worker.verify.sampling import sample
from worker.verify.sampling_checks import SCHEDULE_TOLERANCE, check_sampling, pixels


def check(case: Case, models: GoldenModels) -> list[Measure]:
    """Run one case and return its measures."""
    with torch.no_grad():
        return list(_CHECKS[case.type](case, models))


def _schedule(case: Case, models: GoldenModels) -> Iterator[Measure]:
    entry = case.entry
    got = models.noise_levels(entry["num_steps"], entry["image_seq_len"])
    # In float64: float32 would round the levels by about as much as the tolerance.
    yield from measure(
        "timesteps", torch.tensor(got, dtype=torch.float64), _float64(entry["timesteps"]), SCHEDULE_TOLERANCE
    )


def _noise(case: Case, models: GoldenModels) -> Iterator[Measure]:
    _, channels, rows, columns = case.entry["shape"]
    size = {"channels": channels, "height": rows * PIXELS, "width": columns * PIXELS}
    drawn = noise(case.entry["seed"], **size, dtype=PRECISIONS[case.dtype].dtype)
    digest = hashlib.sha256(drawn.view(torch.uint8).numpy().tobytes()).hexdigest()
    yield Measure("sha256", "differs", float(digest != case.entry["sha256_le_bytes"]), 0.0)


def _forward(case: Case, models: GoldenModels) -> Iterator[Measure]:
    golden = models.goldens.tensors(case.entry["file"])
    components = models.components(case.entry["model"], case.dtype)
    got = forward(models.engine(components), components, golden)
    yield from measure("pred", got, golden["pred"], case.entry["tolerance"])


def forward(engine: Engine, components: Components, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call an engine's transformer once with the inputs of a forward case."""
    device, dtype = components.device, components.dtype
    call = TransformerInputs(
        latents=inputs["x"].to(device, dtype),
        timestep=inputs["timesteps"].to(device, dtype),
        prompt_embeds=inputs["ctx"].to(device, dtype),
        img_ids=inputs["x_ids"].to(device),
        txt_ids=inputs["ctx_ids"].to(device),
        guidance=inputs["guidance"].to(device, dtype),
    )
    return engine.predict(call)


def _adapter(case: Case, models: GoldenModels) -> Iterator[Measure]:
    entry, run, dtype = case.entry, case.entry["run"], case.dtype
    golden, path = models.goldens.tensors(entry["expected"]), models.goldens.folder / entry["file"]
    components = models.mergeable_components(run["model"], dtype, adapter=path)
    embeds = load_embeds(models.goldens, run)
    (engine, swapper), base = models.engine_with_adapters(components), bfl_weights(components.transformer)
    unchanged = {name: base[name] for name in base.keys() - set(entry["changed_weights"])}
    for multiplier in entry["multipliers"]:
        swapper.activate([(adapter_ref(path, multiplier), path)])
        merged, suffix = bfl_weights(components.transformer), f"{dtype}_m{multiplier}"
        yield from _merged_rows(entry, merged, golden, suffix)
        yield same_bits(f"m{multiplier} unchanged weights", merged, unchanged)
        for mode in get_args(AdapterMode):
            # AI Toolkit never merges a DoRA, so the goldens have no merged result for it.
            if (name := f"latents_{mode}_{suffix}") in golden:
                swapper.activate([(adapter_ref(path, multiplier), path)], mode=mode)
                latents = sample(engine, components, run, **embeds)
                yield from measure(name, latents, golden[name], entry["tolerance"][f"latents_{dtype}"])
    swapper.activate([])
    # Bits, not values: subtracting an update again would leave a trace in bfloat16.
    yield same_bits("restored weights", bfl_weights(components.transformer), base)


def _merged_rows(
    entry: Mapping[str, Any], merged: Mapping[str, Tensor], golden: Mapping[str, Tensor], suffix: str
) -> Iterator[Measure]:
    for key in entry["changed_weights"]:
        yield equal(f"merged_{suffix}/{key}", _stored_rows(entry, merged[key]), golden[f"merged_{suffix}/{key}"])


def _stored_rows(entry: Mapping[str, Any], weight: Tensor) -> Tensor:
    # The goldens store only every `stride`-th row, to keep the files small.
    return weight[entry["merged_rows"]["start"] :: entry["merged_rows"]["stride"]]


def _adapter_hand(case: Case, models: GoldenModels) -> Iterator[Measure]:
    entry, components = case.entry, models.mergeable_components(case.entry["run"]["model"], case.dtype)
    swapper, base = AdapterSwapper(components), bfl_weights(components.transformer)
    # The goldens hold a result for a file that fits only in part, noting that it must not pass silently: we refuse it.
    if entry["expected_error"] or "raise" in (entry["note"] or ""):
        yield _refused(swapper, models, entry["file"])
    else:
        yield from _hand_latents(case, models, components, swapper)
        swapper.activate([])
    yield same_bits("weights afterwards", bfl_weights(components.transformer), base)


def _hand_latents(
    case: Case, models: GoldenModels, components: Components, swapper: AdapterSwapper
) -> Iterator[Measure]:
    entry, path = case.entry, models.goldens.folder / case.entry["file"]
    golden, embeds = models.goldens.tensors(entry["expected"]), load_embeds(models.goldens, entry["run"])
    engine = models.engine(components)
    original = models.goldens.adapter_case(entry["same_as"]) if entry.get("same_as") else None
    for multiplier in entry["multipliers"]:
        swapper.activate([(adapter_ref(path, multiplier), path)])
        what = f"latents_{case.dtype}_m{multiplier}"
        latents = sample(engine, components, entry["run"], **embeds)
        yield from measure(what, latents, golden[f"{case.name}/{what}"], entry["tolerance"][f"latents_{case.dtype}"])
        if original is not None and multiplier in original["multipliers"]:
            yield from _same_weights(case, original, models, bfl_weights(components.transformer), multiplier)


def _same_weights(
    case: Case, original: Mapping[str, Any], models: GoldenModels, merged: Mapping[str, Tensor], multiplier: float
) -> Iterator[Measure]:
    """Compare merged weights with those of the adapter that the case's file was converted from."""
    golden, suffix = models.goldens.tensors(original["expected"]), f"{case.dtype}_m{multiplier}"
    # Not equal in general: the file's factors may be rescaled by a number that is no power of two.
    tolerance = case.entry["tolerance"][f"latents_{case.dtype}"]
    for key in original["changed_weights"]:
        rows, name = _stored_rows(original, merged[key]), f"merged_{suffix}/{key}"
        yield from measure(name, rows, golden[name], tolerance)


def _refused(swapper: AdapterSwapper, models: GoldenModels, file: str) -> Measure:
    """Return a measure that passes if the adapter is refused and the message names a part of the file."""
    path = models.goldens.folder / file
    try:
        swapper.activate([(adapter_ref(path, 1.0), path)])
    except RequestError as error:
        named = any(name in str(error) for name in _names_in(path))
        what = "refusal" if named else f"the refusal names no key of the file ({error}):"
        return Measure(what, "wrong", float(not named), 0.0)
    return Measure("the adapter was accepted but must be refused:", "wrong", 1.0, 0.0)


def _names_in(path: Path) -> Iterator[str]:
    """Yield what a refusal may name: keys, their modules and layers, and the entries of the metadata."""
    with safe_open(path, framework="pt") as file:
        # Entries of one word, such as `format` or `r`, occur in any message.
        yield from (name for name in file.metadata() or () if "_" in name or "." in name)
        for key in file.keys():  # noqa: SIM118 - not a mapping
            yield key
            split = split_key(key)
            if split is not None:
                # A message about two keys may name their layer instead.
                yield strip_prefix(split.module)
                target = parse_target(split.module)
                yield from () if target is None else (target.layer,)


def _preview(case: Case, models: GoldenModels) -> Iterator[Measure]:
    entry, golden = case.entry, models.goldens.tensors(case.entry["file"])
    path = models.goldens.folder / entry["adapter"]
    components = models.mergeable_components(entry["model"], case.dtype, adapter=path)
    engine, swapper = models.engine_with_adapters(components)
    for shown in entry["samples"]:
        index = shown["index"]
        size = {side: shown[f"{side}_requested"] // PIXELS * PIXELS for side in ("width", "height")}
        swapper.activate([(adapter_ref(path, shown["network_multiplier"]), path)])
        latents = sample(engine, components, {**shown, **size}, golden["prompt_embeds"])
        # The manifest limits only the pixels of a preview; the latents' error is reported.
        yield from measure(f"latents_{index}", latents, golden[f"latents_{index}"], {})
        image = pixels(engine, engine.decode(latents)[0])
        yield from measure(f"image_{index}", image, golden[f"image_{index}"], entry["tolerance"]["image_u8"])


def _float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_CHECKS: dict[CaseType, Callable[[Case, GoldenModels], Iterator[Measure]]] = {
    CaseType.SCHEDULE: _schedule,
    CaseType.NOISE: _noise,
    CaseType.FORWARD: _forward,
    CaseType.SAMPLING: check_sampling,
    CaseType.REFERENCE: check_references,
    CaseType.ADAPTER: _adapter,
    CaseType.ADAPTER_HAND: _adapter_hand,
    CaseType.PREVIEW: _preview,
    CaseType.TEXT: check_text,
    CaseType.E2E: check_prompt_to_image,
}
