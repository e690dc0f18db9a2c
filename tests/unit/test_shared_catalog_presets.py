"""The presets of the models say what their sources say."""

from inspect import signature

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from shared.catalog import MODELS, TURBO
from shared.errors import InvalidRequest
from shared.noise_levels import check_noise_levels

# From the card of https://huggingface.co/fal/FLUX.2-dev-Turbo.
PUBLISHED = [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031]


def test_turbo_has_the_noise_levels_at_which_diffusers_denoises_when_it_is_passed_the_published_list():
    # The shifts of scheduler/scheduler_config.json in FLUX.2-dev.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    assert signature(scheduler.set_timesteps).parameters.keys() >= {"sigmas", "mu"}

    scheduler.set_timesteps(sigmas=PUBLISHED, mu=compute_empirical_mu(4096, len(PUBLISHED)))

    *levels, last = scheduler.sigmas.tolist()
    assert TURBO.sigmas == pytest.approx(levels, abs=5.1e-5)
    assert last == 0


def test_the_published_list_is_an_even_schedule_that_was_shifted_back():
    # 3t / (1 + 2t) shifts by 3; the card's levels have four digits.
    even = [1 - step * 0.999 / 7 for step in range(8)]

    assert TURBO.sigmas == pytest.approx([3 * t / (1 + 2 * t) for t in even], abs=3e-4)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_each_preset_has_values_that_a_request_may_have(model):
    assert len({preset.name for preset in model.presets}) == len(model.presets)
    for preset in model.presets:
        assert preset.sigmas is None or preset.sample_steps is None
        check_noise_levels(preset.sigmas or ())


def test_an_unknown_preset_is_refused_with_the_names_of_those_that_exist():
    with pytest.raises(InvalidRequest, match="no preset 'turboo'; use one of: turbo"):
        MODELS["flux2"].find_preset("turboo")
    with pytest.raises(InvalidRequest, match="no preset 'turbo'; leave it out"):
        MODELS["flux2_klein_4b"].find_preset("turbo")
