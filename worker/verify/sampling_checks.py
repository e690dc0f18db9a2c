"""Compare whole runs of an engine with the goldens: inputs, steps, final latents and pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from worker.model.components import Components
from worker.rendering.engine import Engine
from worker.rendering.latents import image_ids, text_ids
from worker.rendering.reference_encoder import References
from worker.verify.golden_models import GoldenModels
from worker.verify.goldens import Case
from worker.verify.measures import Measure, equal, measure
from worker.verify.outcome import VerifiedEngine
from worker.verify.sampling import TransformerCalls, record_calls, sample, starting_noise

# A step on another CPU used 0.7 of the latents' limit; a wrong schedule or noise exceeds the limit 200 times or more.
_STEP_SLACK = 5
#: The goldens' README.md says "Expect equality to 1e-7".
SCHEDULE_TOLERANCE: Final = {"max_abs": 1e-7}


def check_sampling(case: Case, models: GoldenModels) -> Iterator[Measure]:
    entry, golden = case.entry, models.goldens.tensors(case.entry["file"])
    components = models.components(entry["model"], case.dtype)
    engine = models.engine(components)
    yield from compare_inputs(entry, golden, components, models)
    latents, calls = run_recorded(entry, golden, components, engine)
    # Diffusers steps through another schedule, so only the end of its run can be compared.
    if models.engine_name is not VerifiedEngine.DIFFUSERS:
        yield from compare_steps(calls, golden, 1 + entry["true_cfg"], entry["tolerance"]["latents"])
    yield from compare_image(entry, golden, engine, latents)


def run_recorded(
    entry: Mapping[str, Any],
    golden: Mapping[str, Tensor],
    components: Components,
    engine: Engine,
    *,
    references: References | None = None,
) -> tuple[Tensor, TransformerCalls]:
    """Denoise from a golden's stored noise and embeddings; return the final latents and the transformer's calls."""
    with record_calls(engine) as calls:
        latents = sample(
            engine,
            components,
            entry,
            golden["prompt_embeds"],
            negative_prompt_embeds=golden.get("negative_prompt_embeds") if entry["true_cfg"] else None,
            start=golden["initial_latents"],
            references=references,
        )
    return latents, calls


def compare_image(
    entry: Mapping[str, Any], golden: Mapping[str, Tensor], engine: Engine, latents: Tensor
) -> Iterator[Measure]:
    """Compare the final latents, and decode and compare the image."""
    tolerance = entry["tolerance"]
    yield from measure("latents", latents, golden["latents"], tolerance["latents"])
    decoded = engine.decode(latents)
    if "decoded" in golden:
        yield from measure("decoded", decoded, golden["decoded"].float(), tolerance["decoded"])
    yield from measure("image_u8", pixels(engine, decoded[0]), golden["image_u8"], tolerance["image_u8"])


def compare_inputs(
    entry: Mapping[str, Any], golden: Mapping[str, Tensor], components: Components, models: GoldenModels
) -> Iterator[Measure]:
    """Compare everything that is fixed before the first step: noise, positions and schedule."""
    batch, _, rows, columns = golden["initial_latents"].shape
    if batch == 1:  # AI Toolkit draws a whole batch with one generator; here each image has its own
        drawn = starting_noise(components, entry, dtype=golden["initial_latents"].dtype)
        yield equal("initial_latents", drawn, golden["initial_latents"])
    yield equal("img_ids", image_ids(rows, columns).expand_as(golden["img_ids"]), golden["img_ids"])
    yield equal("txt_ids", text_ids(golden["txt_ids"].shape[1]).expand_as(golden["txt_ids"]), golden["txt_ids"])
    schedule = models.noise_levels(entry["num_inference_steps"], rows * columns)
    yield from measure("timesteps", torch.tensor(schedule), golden["timesteps"], SCHEDULE_TOLERANCE)


def compare_steps(
    calls: TransformerCalls, golden: Mapping[str, Tensor], calls_a_step: int, tolerance: Mapping[str, float]
) -> Iterator[Measure]:
    """Compare the timesteps and the stored steps.

    `x_NNN` is a step's input, `pred_NNN` and `pred_uncond_NNN` are its outputs.

    Args:
        tolerance: of the final latents; one step may be worse.
    """
    yield equal("timesteps_model", torch.stack(calls.timesteps), golden["timesteps_model"])
    slack = {metric: _STEP_SLACK * limit for metric, limit in tolerance.items()}
    for name, expected in sorted(golden.items()):
        if kept := re.fullmatch(r"(x|pred|pred_uncond)_(\d+)", name):
            # Guidance by two passes calls the transformer with the prompt first, then with the negative prompt.
            call = int(kept[2]) * calls_a_step + (kept[1] == "pred_uncond")
            yield from measure(name, (calls.inputs if kept[1] == "x" else calls.outputs)[call], expected, slack)


def pixels(engine: Engine, decoded: Tensor) -> Tensor:
    """Return a decoded image as (height, width, 3), uint8."""
    return torch.from_numpy(np.array(engine.image(decoded)))
