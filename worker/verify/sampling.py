"""Run an engine on stored inputs: draw its noise, denoise to latents, and record each call of its transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from worker.model.components import Components
from worker.rendering.engine import DenoisingInputs, Engine
from worker.rendering.latents import noise
from worker.rendering.reference_encoder import References
from worker.verify.outcome import VerifiedEngine

# The argument names of the timestep, the latents and their coordinates in each engine's transformer.
_ARGUMENTS = {
    VerifiedEngine.EXACT: ("timestep", "hidden_states", "img_ids"),
    VerifiedEngine.TOOLKIT: ("timesteps", "x", "x_ids"),
    VerifiedEngine.DIFFUSERS: ("timestep", "hidden_states", "img_ids"),
}


@dataclass
class TransformerCalls:
    """The inputs and outputs of a transformer, one element for each call.

    Attributes:
        ids: the coordinates of the inputs' tokens.
    """

    timesteps: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def starting_noise(components: Components, run: Mapping[str, Any], *, dtype: torch.dtype) -> Tensor:
    """Draw the noise for the `seed`, `width` and `height` of a run."""
    channels = components.transformer.config.in_channels
    return noise(run["seed"], channels=channels, height=run["height"], width=run["width"], dtype=dtype)


@torch.no_grad()
def sample(
    engine: Engine,
    components: Components,
    run: Mapping[str, Any],
    prompt_embeds: Tensor,
    *,
    negative_prompt_embeds: Tensor | None = None,
    start: Tensor | None = None,
    references: References | None = None,
) -> Tensor:
    """Denoise and return latents (batch, channels, rows, columns).

    Args:
        run: `width`, `height`, `num_inference_steps`, `guidance_scale` and `seed`, as the manifest names them.
        negative_prompt_embeds: embeddings that classifier-free guidance steers away from; None for one pass a step.
        start: the starting noise; None draws it from the run's seed.
        references: the reference images of the run.
    """
    start = starting_noise(components, run, dtype=components.dtype) if start is None else start
    latents, prompt, negative = (
        None if tensor is None else tensor.to(components.device, components.dtype)
        for tensor in (start, prompt_embeds, negative_prompt_embeds)
    )
    assert latents is not None
    assert prompt is not None
    settings = DenoisingInputs(run["num_inference_steps"], run["guidance_scale"], prompt, negative, references)
    return engine.denoise(latents, settings, on_step=lambda *_: None)


@contextmanager
def record_calls(engine: Engine) -> Iterator[TransformerCalls]:
    """Record each call of the engine's transformer until the context ends."""
    calls, (timestep, latents, ids) = TransformerCalls(), _ARGUMENTS[VerifiedEngine(engine.name)]

    def record(_: nn.Module, __: Any, arguments: dict[str, Any], output: Any) -> None:
        calls.timesteps.append(arguments[timestep])
        calls.inputs.append(arguments[latents])
        calls.ids.append(arguments[ids])
        # diffusers' transformer returns a tuple, AI Toolkit's a tensor.
        calls.outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = engine.transformer.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
