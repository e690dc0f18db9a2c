"""The parts that the two engines share, and this project's code around AI Toolkit's classes.

Those classes themselves run in tests/integration/test_engine_toolkit.py, where a checkout is at hand.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shared.errors import CheckpointError, InvalidRequest, ItemCanceled
from shared.job import ENGINES, SIGMAS_ENGINES
from worker.checkpoint.tensor_names import join_rows, tensor_parts, transformer_origins
from worker.rendering.engine import DenoisingInputs
from worker.rendering.native_engine import ExactEngine, FastEngine
from worker.rendering.renderer import Renderer
from worker.rendering.toolkit_engine import ToolkitEngine, assign_weights


class Transformer(nn.Module):
    """Predicts its own weight, in the words of AI Toolkit's."""

    use_guidance_embed = True

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, *, x):
        return torch.zeros_like(x) + self.weight.sum()


class Pipeline:
    """As many passes of the transformer as AI Toolkit's would make."""

    def __init__(self, *, transformer, **parts):
        self.transformer, self.parts = transformer, parts

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, *, latents, num_inference_steps, negative_prompt_embeds, **_):
        for _ in range(num_inference_steps * (1 if negative_prompt_embeds is None else 2)):
            latents = latents + self.transformer(x=latents)
        return (latents,)


TOOLKIT = SimpleNamespace(
    pipeline=Pipeline, scheduler=lambda **config: config, scheduler_config={"shift": 3.0}, version="1.2.3"
)
NOISE = torch.zeros(1, 4, 2, 2)
EMBEDS = torch.zeros(1, 3, 8)


def engine(weight=None, **options):
    return ToolkitEngine(TOOLKIT, Transformer(torch.ones(1) if weight is None else weight), None, **options)


def test_the_engines_that_take_noise_levels_are_those_that_the_api_lets_pass():
    engines = (ExactEngine, FastEngine, ToolkitEngine)

    assert {kind.name for kind in engines if kind.takes_sigmas} == SIGMAS_ENGINES
    assert {kind.name for kind in engines} == set(ENGINES)


@pytest.mark.parametrize("negative", [None, EMBEDS], ids=["one pass a step", "two passes a step"])
def test_each_step_of_ai_toolkits_pipeline_is_reported_once(negative):
    steps = []

    engine().denoise(NOISE, DenoisingInputs(3, 4.0, EMBEDS, negative), on_step=lambda *step: steps.append(step))

    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_a_cancel_ends_ai_toolkits_pipeline_and_leaves_no_hook():
    used, steps = engine(), []

    def cancel(step, of):
        steps.append(step)
        raise ItemCanceled("x:0: canceled by the caller")

    with pytest.raises(ItemCanceled):
        used.denoise(NOISE, DenoisingInputs(3, 4.0, EMBEDS), on_step=cancel)

    assert steps == [1]
    assert not used.transformer._forward_hooks


def test_copied_tensors_are_refreshed_before_each_run():
    parts = [torch.ones(2), torch.ones(3)]
    copy = torch.cat(parts)
    used = engine(copy, copies=[(copy, parts)])
    parts[1].fill_(5)  # as a merge would

    latents = used.denoise(NOISE, DenoisingInputs(1, 4.0, EMBEDS), on_step=lambda *_: None)

    assert latents.unique().item() == 2 * 1 + 3 * 5


def test_the_pipeline_is_given_ai_toolkits_scheduler_and_the_report_its_version():
    used = engine()

    assert used._pipeline.parts["scheduler"] == {"shift": 3.0}
    assert used._pipeline.parts["is_guidance_distilled"]
    assert used.versions["ai-toolkit"] == "1.2.3"


def test_weights_that_ai_toolkits_class_does_not_hold_are_refused_by_name():
    with pytest.raises(CheckpointError, match=r"Linear: missing \['weight'\], unknown \['wait'\]"):
        assign_weights(nn.Linear(2, 2, bias=False), {"wait": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="size mismatch for weight"):
        assign_weights(nn.Linear(2, 2, bias=False), {"weight": torch.zeros(3, 2)})


def test_an_engine_that_is_not_offered_is_refused(components, item):
    renderer = Renderer(components("fp32"), prompt_cache=1)

    assert renderer.engines == ("exact",)
    with pytest.raises(InvalidRequest, match="not offer the engine 'ai-toolkit': AI_TOOLKIT_PATH must name a checkout"):
        renderer.render(item(engine="ai-toolkit"), [], on_progress=lambda _: None)


def test_adjacent_parts_are_joined_without_a_copy():
    whole = torch.arange(12.0).view(6, 2)

    view = join_rows(whole.chunk(3))
    whole[4] = -1

    assert torch.equal(view, whole)
    assert not torch.equal(join_rows(whole.chunk(3)[::-1]), whole)  # in another order they are a copy
    assert torch.equal(join_rows([whole[:2], whole[4:]]), whole[[0, 1, 4, 5]])


def test_only_the_last_modulation_of_a_loaded_transformer_cannot_be_shared(components):
    transformer = components("bf16").transformer

    parts = tensor_parts(transformer, transformer_origins(transformer))
    apart = [
        name
        for name, tensors in parts.items()
        if join_rows(tensors).untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr()
    ]

    assert apart == ["final_layer.adaLN_modulation.1.weight"]
