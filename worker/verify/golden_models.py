"""The product's parts as the checks use them: loaded with the product's loader, run by the product's functions.

This is the one module of the verification that knows their signatures. It computes nothing of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from shared.adapters.identity import sha256_of
from shared.catalog import MODELS
from shared.job import AdapterRef
from worker.checkpoint.locate import ModuleFiles
from worker.checkpoint.tensor_names import layer_shapes, tensor_parts, transformer_origins
from worker.lora.hot_swap import WarmPipeline
from worker.model.architecture import ROPE_AXES, ROPE_THETA
from worker.model.components import DTYPES, Components
from worker.model.load import load_autoencoder, load_transformer
from worker.model.placement import Placement
from worker.rendering.engine import Engine, Run
from worker.rendering.latents import noise
from worker.rendering.native_engine import Exact
from worker.rendering.sigmas import sigmas
from worker.rendering.toolkit_checkout import Toolkit
from worker.rendering.toolkit_engine import over
from worker.verify.diffusers_pipeline import DiffusersEngine
from worker.verify.goldens import Goldens, sidecar
from worker.verify.outcome import VerifiedEngine

# Ids in the catalogue of the models that the goldens name by family.
MODEL_IDS = {"dev": "flux2", "klein": "flux2_klein_4b"}

# What each engine's transformer calls the timestep and the latents.
_WORDS = {
    VerifiedEngine.EXACT: ("timestep", "hidden_states"),
    VerifiedEngine.TOOLKIT: ("timesteps", "x"),
    VerifiedEngine.DIFFUSERS: ("timestep", "hidden_states"),
}


@dataclass
class Calls:
    """What a transformer was given and gave, call by call."""

    timesteps: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


class GoldenModels:
    """The goldens' models, loaded on `device` once for each precision.

    Args:
        verified: the engine that runs over those models.
        toolkit: AI Toolkit's classes, if it is its engine.
    """

    def __init__(
        self,
        goldens: Goldens,
        device: torch.device,
        *,
        verified: VerifiedEngine = VerifiedEngine.EXACT,
        toolkit: Toolkit | None = None,
    ) -> None:
        self.goldens = goldens
        self.device = device
        self.verified = verified
        self.toolkit = toolkit
        self._shared: dict[tuple[str, str], Components] = {}

    def components(self, model: str, dtype: str) -> Components:
        """Return a model whose weights are not to be changed. It has no text encoder: embeddings are given."""
        if (model, dtype) not in self._shared:
            self._shared[model, dtype] = self._load(model, dtype)
        return self._shared[model, dtype]

    def own(self, model: str, dtype: str, *, adapter: Path | None = None) -> Components:
        """Return a model with a transformer of the caller's own, to merge adapters into.

        Args:
            adapter: klein's goldens are of neither size that is served; they pass for the one that this file names.
        """
        shared = self.components(model, dtype)
        named = _trained_on(adapter) if adapter else None
        id_ = named if named in MODELS and model in named else shared.model
        return replace(shared, transformer=self._transformer(model, dtype), model=id_)

    def engine(self, components: Components) -> Engine:
        """Return the engine that is verified, over these components."""
        if self.verified is VerifiedEngine.DIFFUSERS:
            return DiffusersEngine(components)
        return Exact(components) if self.toolkit is None else over(components, self.toolkit)

    def adapted(self, components: Components) -> tuple[Engine, WarmPipeline]:
        """Return the engine that is verified, and what puts adapters into it."""
        engine, warm = self.engine(components), WarmPipeline(components)
        if self.toolkit is not None:
            warm.live.also_in(engine.transformer)
        return engine, warm

    def schedule(self, steps: int, image_tokens: int) -> list[float]:
        """Return the noise levels that this project's engine, or AI Toolkit's, samples at."""
        schedule = sigmas if self.toolkit is None else self.toolkit.get_schedule
        levels: list[float] = schedule(steps, image_tokens)
        return levels

    def as_stated(self, components: Components, model: str) -> Components:
        """Return components that were loaded from shapes with the transformer that the goldens' sidecar states."""
        with transformer_files(self.goldens.transformer(model)) as files:
            usual = files.config is None
        return components if usual else replace(components, transformer=self._transformer(model, components.precision))

    def _load(self, model: str, dtype: str) -> Components:
        transformer = self._transformer(model, dtype)
        files = ModuleFiles("bfl", (self.goldens.autoencoder(),))
        nothing: Any = None
        return Components(
            model=MODEL_IDS[model],
            transformer=transformer,
            autoencoder=load_autoencoder(files, device=self.device, dtype=DTYPES[dtype]),
            text_encoder=nn.Identity(),
            tokenizer=nothing,
            layers=layer_shapes(transformer),
            revision="goldens",
            precision=dtype,
            device=self.device,
            placement=Placement("resident", "host", 0),
            regions={},
        )

    def _transformer(self, model: str, dtype: str) -> Any:
        weights = self.goldens.transformer(model)
        with transformer_files(weights) as files:
            return load_transformer(files, device=self.device, dtype=DTYPES[dtype])


def _trained_on(adapter: Path) -> str:
    with safe_open(adapter, framework="pt") as file:
        return str((file.metadata() or {}).get("ss_base_model_version"))


@contextmanager
def transformer_files(weights: Path) -> Iterator[ModuleFiles]:
    """Name a transformer's files for the loader.

    Shapes do not say how RoPE splits a head. Where the sidecar states another split or base than all FLUX.2 have, a
    configuration is written for the loader to read instead.
    """
    stated = sidecar(weights)
    head_dim = stated["hidden_size"] // stated["num_heads"] if stated else 0
    axes, theta = stated.get("axes_dim"), stated.get("theta", ROPE_THETA)
    if axes is None or (axes == [head_dim // ROPE_AXES] * ROPE_AXES and theta == ROPE_THETA):
        yield ModuleFiles("bfl", (weights,))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(_config(stated, head_dim)))
        yield ModuleFiles("bfl", (weights,), config)


def _config(stated: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Translate a sidecar into diffusers' words."""
    return {
        "in_channels": stated["in_channels"],
        "out_channels": stated["in_channels"],
        "num_layers": stated["depth"],
        "num_single_layers": stated["depth_single_blocks"],
        "attention_head_dim": head_dim,
        "num_attention_heads": stated["num_heads"],
        "joint_attention_dim": stated["context_in_dim"],
        "mlp_ratio": stated["mlp_ratio"],
        "axes_dims_rope": stated["axes_dim"],
        "rope_theta": stated["theta"],
        "guidance_embeds": stated["use_guidance_embed"],
    }


def adapter_ref(path: Path, multiplier: float) -> AdapterRef:
    """Name an adapter file as the API does when it accepts a job."""
    size = path.stat().st_size
    return AdapterRef(path=path.name, sha256=sha256_of(path), size_bytes=size, multiplier=multiplier)


def starting_noise(components: Components, run: Mapping[str, Any], *, dtype: torch.dtype) -> Tensor:
    """Draw the noise of a run: `seed`, `width` and `height`."""
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
) -> Tensor:
    """Denoise to latents (batch, channels, rows, columns), from noise or from `start`.

    Args:
        run: `width`, `height`, `num_inference_steps`, `guidance_scale` and `seed`, as the manifest has them.
        negative_prompt_embeds: what true classifier-free guidance leads away from; None for one pass a step.
    """
    start = starting_noise(components, run, dtype=components.dtype) if start is None else start
    latents, prompt, negative = (
        None if tensor is None else tensor.to(components.device, components.dtype)
        for tensor in (start, prompt_embeds, negative_prompt_embeds)
    )
    assert latents is not None
    assert prompt is not None
    given = Run(run["num_inference_steps"], run["guidance_scale"], prompt, negative)
    return engine.denoise(latents, given, on_step=lambda *_: None)


@contextmanager
def recorded(engine: Engine) -> Iterator[Calls]:
    """Record each call of an engine's transformer."""
    calls, (timestep, latents) = Calls(), _WORDS[VerifiedEngine(engine.name)]

    def record(_: nn.Module, __: Any, given: dict[str, Any], gave: Any) -> None:
        calls.timesteps.append(given[timestep])
        calls.inputs.append(given[latents])
        calls.outputs.append(gave[0] if isinstance(gave, tuple) else gave)

    handle = engine.transformer.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def bfl_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """Return copies of a transformer's weights under BFL's names, put together from diffusers' parts."""
    parts = tensor_parts(transformer, transformer_origins(transformer))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}
