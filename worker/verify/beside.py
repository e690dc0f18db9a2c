"""AI Toolkit's own classes and the product's on the same inputs and device: not one element may differ.

Stored numbers depend on the kernels of the machine that made them; two runs on one machine do not. The transformer and
the autoencoder of either side are loaded from the same file, each by its own loader. For adapters, both run with the
weights that the product merged, put back under BFL's names by `worker.pipeline.bfl`'s table; that the merge itself is
the trainer's is what the `adapter` cases compare with stored rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import CheckpointError
from worker.pipeline.cache import WarmPipeline
from worker.pipeline.components import DTYPES
from worker.sampling.decode import decode
from worker.toolkit import Toolkit
from worker.verify.checks import forward
from worker.verify.compare import Measure, equal
from worker.verify.golden import Case, Goldens, given_embeds, sidecar
from worker.verify.outcome import CaseType, GoldensError, Precision
from worker.verify.product import Product, adapter_ref, bfl_weights, sample


@dataclass(frozen=True)
class Beside:
    """Both sides: the product with its goldens, and a checkout of AI Toolkit."""

    product: Product
    toolkit: Toolkit

    def check(self, case: Case) -> list[Measure]:
        """Run one case on both sides."""
        with torch.no_grad():
            return list(_CHECKS[case.type](case, self))

    def transformer(self, model: str, dtype: str) -> Any:
        """Return AI Toolkit's transformer with the goldens' weights."""
        weights = self.product.goldens.transformer(model)
        params = self.toolkit.transformer_params(**_stated(weights))
        return self._loaded(self.toolkit.transformer(params), load_file(weights), dtype)

    def autoencoder(self, dtype: str) -> Any:
        """Return AI Toolkit's autoencoder with the goldens' weights."""
        weights, toolkit = self.product.goldens.autoencoder(), self.toolkit
        stated = _stated(weights)
        params = toolkit.small_decoder_params if "ch_encoder" in stated else toolkit.autoencoder_params
        return self._loaded(toolkit.autoencoder(params(**stated)), load_file(weights), dtype)

    def _loaded(self, module: nn.Module, state: Mapping[str, Tensor], dtype: str) -> nn.Module:
        try:
            missing, unexpected = module.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"AI Toolkit's {type(module).__name__}: {error}") from error
        absent = [name for name in missing if name != "bn.num_batches_tracked"]  # a counter of training
        if absent or unexpected:
            raise CheckpointError(f"AI Toolkit's {type(module).__name__} lacks {absent} or does not know {unexpected}")
        return module.to(self.product.device, DTYPES[dtype]).requires_grad_(False).eval()

    def latents(self, transformer: Any, run: Mapping[str, Any], dtype: str, **given: Tensor | None) -> Tensor:
        """Run AI Toolkit's pipeline to its latents; `given` are its own arguments."""
        pipeline = self.toolkit.pipeline(
            scheduler=None,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
            is_guidance_distilled=transformer.use_guidance_embed,
        )
        pipeline.set_progress_bar_config(disable=True)
        tensors = {
            name: tensor.to(self.product.device, DTYPES[dtype]) for name, tensor in given.items() if tensor is not None
        }
        output: Tensor = pipeline(
            height=run["height"],
            width=run["width"],
            num_inference_steps=run["num_inference_steps"],
            guidance_scale=run["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(run["seed"]),
            output_type="latent",
            return_dict=False,
            **tensors,
        )[0]
        return output


def cases(goldens: Goldens, *, only: CaseType | None, dtype: Precision | None) -> list[Case]:
    """Return the cases that can be compared side by side, each in both precisions whatever it was stored in.

    Raises:
        GoldensError: there is none.
    """
    stored = goldens.cases(only=only, dtype=None)
    inputs = {(case.type, case.name): case for case in stored if case.type in _CHECKS}
    wanted = [precision.value for precision in Precision if dtype in (None, precision)]
    if not inputs:
        raise GoldensError(f"{only} is not compared with AI Toolkit's classes; {', '.join(_CHECKS)} are")
    return [replace(case, dtype=precision) for case in inputs.values() for precision in wanted]


def _forward(case: Case, beside: Beside) -> Iterator[Measure]:
    model, golden = case.entry["model"], beside.product.goldens.tensors(case.entry["file"])
    ours = forward(beside.product.components(model, case.dtype), golden)
    device, dtype = beside.product.device, DTYPES[case.dtype]
    floats = {name: golden[name].to(device, dtype) for name in ("x", "ctx", "timesteps", "guidance")}
    ids = {name: golden[name].to(device) for name in ("x_ids", "ctx_ids")}
    yield equal("pred", ours, beside.transformer(model, case.dtype)(**floats, **ids))


def _sampling(case: Case, beside: Beside) -> Iterator[Measure]:
    entry, golden = case.entry, beside.product.goldens.tensors(case.entry["file"])
    components = beside.product.components(entry["model"], case.dtype)
    embeds, start = golden["prompt_embeds"], golden["initial_latents"]
    # One image is drawn by either side for itself. AI Toolkit draws a batch with one generator, the product never does.
    given = start if len(start) > 1 else None
    negative = golden.get("negative_prompt_embeds") if entry["true_cfg"] else None
    ours = sample(components, entry, embeds, negative_prompt_embeds=negative, start=given)
    theirs = beside.latents(
        beside.transformer(entry["model"], case.dtype),
        entry,
        case.dtype,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        latents=given,
    )
    yield equal("latents", ours, theirs)
    autoencoder = beside.autoencoder(case.dtype)
    yield equal("decoded", decode(components.autoencoder, ours), autoencoder.decode(theirs).float())


def _adapter(case: Case, beside: Beside) -> Iterator[Measure]:
    entry, run, goldens = case.entry, case.entry["run"], beside.product.goldens
    path = goldens.folder / entry["file"]
    components = beside.product.own(run["model"], case.dtype, adapter=path)
    transformer = beside.transformer(run["model"], case.dtype)
    warm = WarmPipeline(components)
    embeds = given_embeds(goldens, run)
    for multiplier in entry["multipliers"]:
        warm.use([(adapter_ref(path, multiplier), path)])
        transformer.load_state_dict(bfl_weights(components.transformer))
        theirs = beside.latents(transformer, run, case.dtype, **embeds)
        yield equal(f"latents_m{multiplier}", sample(components, run, **embeds), theirs)


def _stated(weights: Path) -> dict[str, Any]:
    """Return the parameters that the goldens state: AI Toolkit's classes are not told them by the weights."""
    stated = sidecar(weights)
    if not stated:
        raise GoldensError(f"{weights.with_suffix('.json')} is missing; AI Toolkit's classes need it")
    return stated


_CHECKS: dict[CaseType, Callable[[Case, Beside], Iterator[Measure]]] = {
    CaseType.FORWARD: _forward,
    CaseType.SAMPLING: _sampling,
    CaseType.ADAPTER: _adapter,
}
