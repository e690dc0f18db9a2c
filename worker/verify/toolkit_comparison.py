"""Run AI Toolkit's classes and ours on the same inputs and device, and require equal results.

Stored numbers depend on the kernels of the machine that made them. Two runs on one machine use the same kernels, so not
one element may differ. Both sides load their models from the same files, each with its own loader; our loader drops the
text encoder's layers after the last one that is read. For adapters, both sides run with the weights that we merged,
renamed to Black Forest Labs' names by the table in `worker.checkpoint.tensor_names`. The `adapter` cases check the
merge itself: they compare it with stored rows.
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
from shared.reference_image import read_rgb
from worker.checkpoint.locate import TextEncoderFiles
from worker.lora.hot_swap import AdapterSwapper
from worker.model.precision import PRECISIONS
from worker.model.text_encoder import MISTRAL, family_of, load_text_encoder
from worker.model.tokenizer import load_tokenizer, quiet_transformers
from worker.rendering.prompt_encoder import embed, tokenize
from worker.rendering.toolkit_checkout import Toolkit
from worker.rendering.toolkit_engine import ToolkitEngine, assign_weights
from worker.verify.checks import forward
from worker.verify.golden_models import GoldenModels, adapter_ref, bfl_weights
from worker.verify.goldens import Case, Goldens, load_embeds, sidecar
from worker.verify.measures import Measure, equal
from worker.verify.outcome import CaseType, Precision
from worker.verify.reference_checks import engine_for, load_references, refusal
from worker.verify.sampling import sample


@dataclass(frozen=True)
class ToolkitComparison:
    """The two sides of the comparison: this project's models, and AI Toolkit's classes from a checkout."""

    models: GoldenModels
    toolkit: Toolkit

    def check(self, case: Case) -> list[Measure]:
        """Run one case on both sides and return the measures between them."""
        with torch.no_grad():
            return list(_CHECKS[case.type](case, self))

    def toolkit_engine(self, model: str, dtype: str) -> ToolkitEngine:
        """Return AI Toolkit's engine over modules that AI Toolkit loaded, not over ours."""
        return ToolkitEngine(self.toolkit, self._transformer(model, dtype), self._autoencoder(dtype))

    def _transformer(self, model: str, dtype: str) -> Any:
        weights = self.models.goldens.transformer(model)
        params = self.toolkit.transformer_params(**_stated(weights))
        return self._loaded(self.toolkit.transformer(params), load_file(weights), dtype)

    def _autoencoder(self, dtype: str) -> Any:
        weights, toolkit = self.models.goldens.autoencoder(), self.toolkit
        stated = _stated(weights)
        # Only the parameters of the small decoder name the channels of its encoder.
        params = toolkit.small_decoder_params if "ch_encoder" in stated else toolkit.autoencoder_params
        return self._loaded(toolkit.autoencoder(params(**stated)), load_file(weights), dtype)

    def _loaded(self, module: nn.Module, state: Mapping[str, Tensor], dtype: str) -> nn.Module:
        assign_weights(module, state)
        return module.to(self.models.device, PRECISIONS[dtype].dtype)


def comparable_cases(goldens: Goldens, *, only: CaseType | None, dtype: Precision | None) -> list[Case]:
    """Return the cases that both sides can run, each in both precisions regardless of the stored one.

    Raises:
        GoldensError: there is no matching case that both sides can run.
    """
    stored = goldens.cases(only=only, dtype=None)
    inputs = {(case.type, case.name): case for case in stored if case.type in _CHECKS}
    wanted = [precision.value for precision in Precision if dtype in (None, precision)]
    if not inputs:
        raise GoldensError(
            f"cases of type {only} cannot be compared with AI Toolkit's classes; choose one of {', '.join(_CHECKS)}"
        )
    return [replace(case, dtype=precision) for case in inputs.values() for precision in wanted]


def _forward(case: Case, comparison: ToolkitComparison) -> Iterator[Measure]:
    model, golden = case.entry["model"], comparison.models.goldens.tensors(case.entry["file"])
    components = comparison.models.components(model, case.dtype)
    ours, theirs = comparison.models.engine(components), comparison.toolkit_engine(model, case.dtype)
    yield equal("pred", forward(ours, components, golden), forward(theirs, components, golden))


def _sampling(case: Case, comparison: ToolkitComparison) -> Iterator[Measure]:
    entry, golden = case.entry, comparison.models.goldens.tensors(case.entry["file"])
    components = comparison.models.components(entry["model"], case.dtype)
    given: dict[str, Any] = {
        "prompt_embeds": golden["prompt_embeds"],
        "negative_prompt_embeds": golden.get("negative_prompt_embeds") if entry["true_cfg"] else None,
        # AI Toolkit draws a whole batch with one generator; we use one generator for each image.
        "start": golden["initial_latents"] if len(golden["initial_latents"]) > 1 else None,
    }
    ours, theirs = comparison.models.engine(components), comparison.toolkit_engine(entry["model"], case.dtype)
    latents = sample(ours, components, entry, **given)
    yield equal("latents", latents, sample(theirs, components, entry, **given))
    yield equal("decoded", ours.decode(latents), theirs.decode(latents))


def _references(case: Case, comparison: ToolkitComparison) -> Iterator[Measure]:
    """Compare runs with reference images, which each side prepares and encodes itself."""
    entry, models = case.entry, comparison.models
    if entry.get("expected_error"):
        yield refusal(models.goldens, entry)
        yield _toolkit_refusal(case, comparison)
        return
    golden, (components, ours) = models.goldens.tensors(entry["file"]), engine_for(case, models)
    theirs = comparison.toolkit_engine(entry["model"], case.dtype)
    if "adapter" in entry:
        assign_weights(theirs.transformer, bfl_weights(components.transformer))
    given: dict[str, Any] = {
        "prompt_embeds": golden["prompt_embeds"],
        "negative_prompt_embeds": golden.get("negative_prompt_embeds") if entry["true_cfg"] else None,
    }
    latents, expected = (
        sample(
            engine, components, entry, **given, references=load_references(models.goldens, entry, components, engine)
        )
        for engine in (ours, theirs)
    )
    yield equal("latents", latents, expected)
    yield equal("decoded", ours.decode(latents), theirs.decode(expected))


def _toolkit_refusal(case: Case, comparison: ToolkitComparison) -> Measure:
    """Return a measure that passes if AI Toolkit raises the error that the case names."""
    entry = case.entry
    images = [read_rgb((comparison.models.goldens.folder / name).read_bytes()) for name in entry["references"]]
    try:
        comparison.toolkit.encode_references(comparison.toolkit_engine(entry["model"], case.dtype).autoencoder, images)
    except ValueError as error:
        wrong = type(error).__name__ != entry["toolkit_error"]
        return Measure(f"AI Toolkit's refusal ({error}):" if wrong else "AI Toolkit's refusal", "wrong", wrong, 0.0)
    return Measure("AI Toolkit accepted the references but must refuse them:", "wrong", 1.0, 0.0)


def _adapter(case: Case, comparison: ToolkitComparison) -> Iterator[Measure]:
    entry, run, goldens = case.entry, case.entry["run"], comparison.models.goldens
    path = goldens.folder / entry["file"]
    components = comparison.models.mergeable_components(run["model"], case.dtype, adapter=path)
    ours, theirs = comparison.models.engine(components), comparison.toolkit_engine(run["model"], case.dtype)
    swapper, embeds = AdapterSwapper(components), load_embeds(goldens, run)
    for multiplier in entry["multipliers"]:
        swapper.activate([(adapter_ref(path, multiplier), path)])
        # Both sides run our merged weights: this compares how they run, the stored rows how they were merged.
        assign_weights(theirs.transformer, bfl_weights(components.transformer))
        yield equal(
            f"latents_m{multiplier}",
            sample(ours, components, run, **embeds),
            sample(theirs, components, run, **embeds),
        )


def _text(case: Case, comparison: ToolkitComparison) -> Iterator[Measure]:
    entry, models, dtype = case.entry, comparison.models, PRECISIONS[case.dtype].dtype
    folder = models.goldens.folder / entry["encoder"]
    ours = load_text_encoder(TextEncoderFiles(folder), device=models.device, dtype=dtype)
    family = family_of(ours.config)
    tokenizer = load_tokenizer(models.goldens.folder / entry["tokenizer"], family=family)
    # AI Toolkit keeps every layer: load and cast the whole model as its `load_te` does.
    kind: Any = Mistral3ForConditionalGeneration if family is MISTRAL else Qwen3ForCausalLM
    with quiet_transformers():
        theirs = kind.from_pretrained(folder, dtype=dtype)
    pipeline = comparison.toolkit.pipeline(
        scheduler=None,
        vae=None,
        text_encoder=theirs.to(models.device, dtype=dtype).eval(),
        tokenizer=tokenizer,
        transformer=None,
        text_encoder_type=family.name,
    )
    for index, prompt in enumerate(entry["prompts"]):
        ids, mask = (tensor.to(models.device) for tensor in tokenize(tokenizer, prompt, family=family))
        expected, _ = pipeline.encode_prompt(prompt, device=models.device)
        yield equal(f"prompt_embeds_{index}", embed(ours, ids, mask), expected)


def _stated(weights: Path) -> dict[str, Any]:
    """Return the parameters in the sidecar: AI Toolkit's classes cannot derive them from the weights."""
    stated = sidecar(weights)
    if not stated:
        raise GoldensError(
            f"{weights.with_suffix('.json')} is missing or empty; AI Toolkit's classes take their parameters from it"
        )
    return stated


_CHECKS: dict[CaseType, Callable[[Case, ToolkitComparison], Iterator[Measure]]] = {
    CaseType.FORWARD: _forward,
    CaseType.SAMPLING: _sampling,
    CaseType.REFERENCE: _references,
    CaseType.ADAPTER: _adapter,
    CaseType.TEXT: _text,
}
