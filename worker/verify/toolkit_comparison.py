"""AI Toolkit's own classes and the product's on the same inputs and device: not one element may differ.

Stored numbers depend on the kernels of the machine that made them; two runs on one machine do not. The models of either
side are loaded from the same files, each by its own loader; ours cuts the text encoder after the last layer that is
read. For adapters, both run with the weights that the product merged, put back under BFL's names by
the table of `worker.checkpoint.tensor_names`; the `adapter` cases compare the merge with the trainer's stored rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Mistral3ForConditionalGeneration, Qwen3ForCausalLM

from shared.errors import GoldensError
from worker.lora.hot_swap import WarmPipeline
from worker.model.components import DTYPES
from worker.model.text_encoder import MISTRAL, family_of, load_text_encoder, load_tokenizer, quiet_transformers
from worker.rendering.prompt_encoder import embed, tokenize
from worker.rendering.toolkit_checkout import Toolkit
from worker.rendering.toolkit_engine import AiToolkit, fill
from worker.verify.checks import forward
from worker.verify.golden_models import GoldenModels, adapter_ref, bfl_weights, sample
from worker.verify.goldens import Case, Goldens, given_embeds, sidecar
from worker.verify.measures import Measure, equal
from worker.verify.outcome import CaseType, Precision


@dataclass(frozen=True)
class ToolkitComparison:
    """Both sides: the product with its goldens, and a checkout of AI Toolkit."""

    product: GoldenModels
    toolkit: Toolkit

    def check(self, case: Case) -> list[Measure]:
        """Run one case on both sides."""
        with torch.no_grad():
            return list(_CHECKS[case.type](case, self))

    def theirs(self, model: str, dtype: str) -> AiToolkit:
        """Return AI Toolkit's engine over modules of its own."""
        return AiToolkit(self.toolkit, self._transformer(model, dtype), self._autoencoder(dtype))

    def _transformer(self, model: str, dtype: str) -> Any:
        """Return AI Toolkit's transformer with the goldens' weights."""
        weights = self.product.goldens.transformer(model)
        params = self.toolkit.transformer_params(**_stated(weights))
        return self._loaded(self.toolkit.transformer(params), load_file(weights), dtype)

    def _autoencoder(self, dtype: str) -> Any:
        """Return AI Toolkit's autoencoder with the goldens' weights."""
        weights, toolkit = self.product.goldens.autoencoder(), self.toolkit
        stated = _stated(weights)
        params = toolkit.small_decoder_params if "ch_encoder" in stated else toolkit.autoencoder_params
        return self._loaded(toolkit.autoencoder(params(**stated)), load_file(weights), dtype)

    def _loaded(self, module: nn.Module, state: Mapping[str, Tensor], dtype: str) -> nn.Module:
        fill(module, state)
        return module.to(self.product.device, DTYPES[dtype])


def comparable_cases(goldens: Goldens, *, only: CaseType | None, dtype: Precision | None) -> list[Case]:
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


def _forward(case: Case, beside: ToolkitComparison) -> Iterator[Measure]:
    model, golden = case.entry["model"], beside.product.goldens.tensors(case.entry["file"])
    components = beside.product.components(model, case.dtype)
    ours, theirs = beside.product.engine(components), beside.theirs(model, case.dtype)
    yield equal("pred", forward(ours, components, golden), forward(theirs, components, golden))


def _sampling(case: Case, beside: ToolkitComparison) -> Iterator[Measure]:
    entry, golden = case.entry, beside.product.goldens.tensors(case.entry["file"])
    components = beside.product.components(entry["model"], case.dtype)
    given: dict[str, Any] = {
        "prompt_embeds": golden["prompt_embeds"],
        "negative_prompt_embeds": golden.get("negative_prompt_embeds") if entry["true_cfg"] else None,
        # AI Toolkit draws a batch with one generator, the product never does.
        "start": golden["initial_latents"] if len(golden["initial_latents"]) > 1 else None,
    }
    ours, theirs = beside.product.engine(components), beside.theirs(entry["model"], case.dtype)
    latents = sample(ours, components, entry, **given)
    yield equal("latents", latents, sample(theirs, components, entry, **given))
    yield equal("decoded", ours.decode(latents), theirs.decode(latents))


def _adapter(case: Case, beside: ToolkitComparison) -> Iterator[Measure]:
    entry, run, goldens = case.entry, case.entry["run"], beside.product.goldens
    path = goldens.folder / entry["file"]
    components = beside.product.own(run["model"], case.dtype, adapter=path)
    ours, theirs = beside.product.engine(components), beside.theirs(run["model"], case.dtype)
    warm, embeds = WarmPipeline(components), given_embeds(goldens, run)
    for multiplier in entry["multipliers"]:
        warm.use([(adapter_ref(path, multiplier), path)])
        fill(theirs.transformer, bfl_weights(components.transformer))
        yield equal(
            f"latents_m{multiplier}",
            sample(ours, components, run, **embeds),
            sample(theirs, components, run, **embeds),
        )


def _text(case: Case, beside: ToolkitComparison) -> Iterator[Measure]:
    entry, product, dtype = case.entry, beside.product, DTYPES[case.dtype]
    folder = product.goldens.folder / entry["encoder"]
    ours = load_text_encoder(folder, device=product.device, dtype=dtype)
    family = family_of(ours.config)
    tokenizer = load_tokenizer(product.goldens.folder / entry["tokenizer"], family=family)
    # The whole model, loaded and cast as the trainer's load_te does.
    kind: Any = Mistral3ForConditionalGeneration if family is MISTRAL else Qwen3ForCausalLM
    with quiet_transformers():
        theirs = kind.from_pretrained(folder, dtype=dtype)
    pipeline = beside.toolkit.pipeline(
        scheduler=None,
        vae=None,
        text_encoder=theirs.to(product.device, dtype=dtype).eval(),
        tokenizer=tokenizer,
        transformer=None,
        text_encoder_type=family.name,
    )
    for index, prompt in enumerate(entry["prompts"]):
        ids, mask = (tensor.to(product.device) for tensor in tokenize(tokenizer, prompt, family=family))
        expected, _ = pipeline.encode_prompt(prompt, device=product.device)
        yield equal(f"prompt_embeds_{index}", embed(ours, ids, mask), expected)


def _stated(weights: Path) -> dict[str, Any]:
    """Return the parameters that the goldens state: AI Toolkit's classes are not told them by the weights."""
    stated = sidecar(weights)
    if not stated:
        raise GoldensError(f"{weights.with_suffix('.json')} is missing; AI Toolkit's classes need it")
    return stated


_CHECKS: dict[CaseType, Callable[[Case, ToolkitComparison], Iterator[Measure]]] = {
    CaseType.FORWARD: _forward,
    CaseType.SAMPLING: _sampling,
    CaseType.ADAPTER: _adapter,
    CaseType.TEXT: _text,
}
