"""Load the goldens' models with the worker's own loader, and run the engine under test over them.

The checks call the worker's code through this module and `worker.verify.sampling` and compute nothing themselves, so no
second implementation can agree with the goldens while the worker is wrong.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from shared.adapters.identity import sha256_of
from shared.adapters.peft_folder import compact_config, read_peft_config
from shared.catalog import MODELS
from shared.job import AdapterRef
from worker.checkpoint.locate import ModuleFiles
from worker.checkpoint.tensor_names import layer_shapes, tensor_parts, transformer_origins
from worker.lora.hot_swap import AdapterSwapper
from worker.model.architecture import ROPE_AXES, ROPE_THETA
from worker.model.components import Components
from worker.model.modules import load_autoencoder, load_transformer
from worker.model.placement import Placement
from worker.model.precision import PRECISIONS
from worker.rendering.engine import Engine
from worker.rendering.native_engine import ExactEngine
from worker.rendering.sigmas import sigmas
from worker.rendering.toolkit_checkout import Toolkit
from worker.rendering.toolkit_engine import ToolkitEngine
from worker.verify.diffusers_pipeline import DiffusersEngine
from worker.verify.goldens import Goldens, sidecar
from worker.verify.outcome import VerifiedEngine

# The goldens name models by family; the catalogue lists them under these ids.
MODEL_IDS = {"dev": "flux2", "klein": "flux2_klein_4b"}


class GoldenModels:
    """The goldens' models on `device`, each loaded once for each precision.

    Args:
        engine_name: the engine under test.
        toolkit: AI Toolkit's classes; needed if `engine_name` is `ai-toolkit`.
    """

    def __init__(
        self,
        goldens: Goldens,
        device: torch.device,
        *,
        engine_name: VerifiedEngine = VerifiedEngine.EXACT,
        toolkit: Toolkit | None = None,
    ) -> None:
        self.goldens = goldens
        self.device = device
        self.engine_name = engine_name
        self.toolkit = toolkit
        self._shared: dict[tuple[str, str], Components] = {}

    def components(self, model: str, dtype: str) -> Components:
        """Return a model that all checks share; do not change its weights. It has no text encoder."""
        if (model, dtype) not in self._shared:
            self._shared[model, dtype] = self._load(model, dtype)
        return self._shared[model, dtype]

    def mergeable_components(self, model: str, dtype: str, *, adapter: Path | None = None) -> Components:
        """Return a model with a private transformer, into which the caller may merge adapters.

        Args:
            adapter: file that may name its base model in its header.
        """
        shared = self.components(model, dtype)
        named = _trained_on(adapter) if adapter else None
        # The adapter checks refuse a file that names another base than the model's id. The goldens' klein has neither
        # size of the catalogue, so it gets the id that this file names.
        id_ = named if named in MODELS and model in named else shared.model
        return replace(shared, transformer=self._transformer(model, dtype), model=id_)

    def engine(self, components: Components) -> Engine:
        """Return the engine under test over these components."""
        if self.engine_name is VerifiedEngine.DIFFUSERS:
            return DiffusersEngine(components)
        if self.toolkit is None:
            return ExactEngine(components)
        return ToolkitEngine.from_components(components, self.toolkit)

    def engine_with_adapters(self, components: Components) -> tuple[Engine, AdapterSwapper]:
        """Return the engine under test, and the swapper that merges adapters into its weights."""
        engine, swapper = self.engine(components), AdapterSwapper(components)
        if self.toolkit is not None:  # its modules share our weights, but not our modules' hooks
            swapper.unmerged.add_toolkit_transformer(engine.transformer)
        return engine, swapper

    def noise_levels(self, steps: int, image_tokens: int) -> list[float]:
        """Return the noise levels of a run, from AI Toolkit's function if its engine is under test, else from ours."""
        schedule = sigmas if self.toolkit is None else self.toolkit.get_schedule
        levels: list[float] = schedule(steps, image_tokens)
        return levels

    def with_stated_transformer(self, components: Components, model: str) -> Components:
        """Replace a transformer that was built from a derived configuration, if the sidecar states another one."""
        with transformer_files(self.goldens.transformer(model)) as files:
            derived = files.config is None
        if derived:
            return components
        return replace(components, transformer=self._transformer(model, components.precision.name))

    def _load(self, model: str, dtype: str) -> Components:
        transformer = self._transformer(model, dtype)
        files = ModuleFiles("bfl", (self.goldens.autoencoder(),))
        no_tokenizer: Any = None
        return Components(
            model=MODEL_IDS[model],
            transformer=transformer,
            autoencoder=load_autoencoder(files, device=self.device, dtype=PRECISIONS[dtype].dtype),
            text_encoder=nn.Identity(),  # the cases contain their embeddings
            tokenizer=no_tokenizer,
            layers=layer_shapes(transformer),
            revision="goldens",
            precision=PRECISIONS[dtype],
            device=self.device,
            placement=Placement("resident", "host", 0),
            regions={},
        )

    def _transformer(self, model: str, dtype: str) -> Any:
        weights = self.goldens.transformer(model)
        with transformer_files(weights) as files:
            return load_transformer(files, device=self.device, dtype=PRECISIONS[dtype].dtype)


def _trained_on(adapter: Path) -> str:
    with safe_open(adapter, framework="pt") as file:
        return str((file.metadata() or {}).get("ss_base_model_version"))


@contextmanager
def transformer_files(weights: Path) -> Iterator[ModuleFiles]:
    """Yield the files from which the loader builds a transformer.

    If the sidecar states a RoPE split or base that differs from FLUX.2's, a temporary config.json states them.
    """
    # The loader derives a configuration from the weights' shapes, but shapes do not show how RoPE splits a head.
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
    """Translate a sidecar, which uses AI Toolkit's names, into diffusers' configuration."""
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
    """Return the reference that the API would store for an adapter file when it accepts a job."""
    size = path.stat().st_size
    config = read_peft_config(path)
    return AdapterRef(
        path=path.name,
        sha256=sha256_of(path),
        size_bytes=size,
        multiplier=multiplier,
        peft_config="" if config is None else compact_config(config),
    )


def bfl_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """Return copies of a transformer's weights under Black Forest Labs' names, joined from diffusers' parts."""
    parts = tensor_parts(transformer, transformer_origins(transformer))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}
