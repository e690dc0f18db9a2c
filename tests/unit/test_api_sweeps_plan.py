"""A sweep becomes one job for each adapter list, with every combination of its other axes as prompts."""

from itertools import product

import pytest
from pydantic import ValidationError

from api.schemas.sweep import SweepRequest
from api.sweeps.plan import plan_sweep
from shared.errors import AdapterRefused, InvalidRequest, KeyForbids
from shared.settings import ApiSettings

LIMITS = ApiSettings()
CHECKPOINTS = [
    {"path": "run/a_000000500.safetensors"},
    {"path": "run/a.safetensors", "label": "final"},
    {"path": None},
]


def sweep(**fields):
    return SweepRequest.model_validate({"model": "flux2", "prompts": [{"prompt": "a cat"}], **fields})


def plan(*, limits=LIMITS, **fields):
    return plan_sweep(sweep(**fields), limits)


def loras_of(job):
    return [(lora.path, lora.network_multiplier) for lora in job.request.loras]


def test_each_checkpoint_and_multiplier_is_a_job_and_the_base_model_is_one_alone():
    planned = plan(
        checkpoints=CHECKPOINTS,
        multipliers=[0.6, 1],
        loras=[{"path": "style.safetensors", "network_multiplier": 0.3}],
    )

    style = ("style.safetensors", 0.3)
    assert [(job.part.checkpoint, job.part.multiplier, loras_of(job)) for job in planned.jobs] == [
        ("a_000000500", 0.6, [("run/a_000000500.safetensors", 0.6), style]),
        ("a_000000500", 1.0, [("run/a_000000500.safetensors", 1.0), style]),
        ("final", 0.6, [("run/a.safetensors", 0.6), style]),
        ("final", 1.0, [("run/a.safetensors", 1.0), style]),
        ("base", None, [style]),
    ]
    assert planned.adapter_lists == 5


def test_without_checkpoints_one_job_has_the_other_adapters():
    [job] = plan(loras=[{"path": "style.safetensors"}], seeds=[1, 2]).jobs

    assert loras_of(job) == [("style.safetensors", None)]
    assert (job.part.checkpoint, job.part.multiplier, job.part.images) == (None, None, 2)


def test_images_vary_in_the_order_prompt_size_steps_guidance_and_seed():
    planned = plan(
        prompts=[{"prompt": "a cat"}, {"prompt": "a dog"}],
        sizes=[{"width": 512, "height": 768}, {"width": 1024, "height": 1024}],
        steps=[10, 20],
        guidance_scales=[3.5, 0],
        seeds=[7, 2**60],
    )

    [job] = planned.jobs
    expected = list(product(["a cat", "a dog"], [(512, 768), (1024, 1024)], [10, 20], [3.5, 0], [7, 2**60]))
    assert [
        (prompt.prompt, (prompt.width, prompt.height), prompt.sample_steps, prompt.guidance_scale, prompt.seed)
        for prompt in job.request.prompts
    ] == expected
    # What is stored says the same.
    axes = planned.record([]).axes
    stored = [(axes.texts[axes.choice(place).prompt], axes.values(place)) for place in range(len(expected))]
    assert [
        (text, (values.width, values.height), values.steps, values.guidance_scale, values.seed)
        for text, values in stored
    ] == expected


def test_an_axis_without_values_leaves_what_each_prompt_has():
    planned = plan(
        prompts=[
            {
                "prompt": "[trigger] a cat",
                "width": 512,
                "height": 640,
                "sample_steps": 8,
                "guidance_scale": 2,
                "seed": 5,
            },
            {"prompt": "a dog", "sigmas": [1, 0.5], "trigger_word": "other"},
        ],
        trigger_word="sks",
        checkpoints=CHECKPOINTS[:2],
    )

    first, second = planned.jobs
    assert first.request.prompts == second.request.prompts
    assert [prompt.seed for prompt in first.request.prompts] == [5, 43]
    assert first.request.prompts[1].sigmas == [1, 0.5]
    record = planned.record(["a warning"])
    assert record.axes.texts == ("sks a cat", "a dog")
    assert [tuple(record.axes.values(place).model_dump().values()) for place in (0, 1)] == [
        (5, 512, 640, 8, 2.0),
        # The model's defaults, the two steps of the noise levels, and a seed by the index of the prompt.
        (43, 1024, 1024, 2, 4.0),
    ]
    assert record.images == 4


def test_steps_replace_the_noise_levels_of_a_prompt_and_of_a_preset():
    planned = plan(prompts=[{"prompt": "a cat", "sigmas": [1, 0.5]}, {"prompt": "a dog"}], steps=[4], preset="turbo")

    [job] = planned.jobs
    assert [(prompt.sigmas, prompt.sample_steps) for prompt in job.request.prompts] == [(None, 4), (None, 4)]
    # The guidance is still the preset's.
    assert [job.part.first, planned.record([]).axes.values(0).guidance_scale] == [0, 2.5]


def test_a_random_seed_of_a_prompt_is_the_same_in_all_of_its_images():
    planned = plan(
        prompts=[{"prompt": "a cat", "seed": -1}, {"prompt": "a dog", "seed": -1}],
        checkpoints=CHECKPOINTS,
        steps=[4, 5],
    )

    seeds = [[prompt.seed for prompt in job.request.prompts] for job in planned.jobs]
    assert seeds[0] == seeds[1] == seeds[2]
    assert seeds[0][0] == seeds[0][1] != seeds[0][2] == seeds[0][3]
    assert all(0 <= seed < 2**32 for seed in seeds[0])


def test_an_adapter_list_with_more_images_than_a_job_may_have_gives_several_jobs():
    planned = plan(limits=ApiSettings(max_prompts=4), checkpoints=CHECKPOINTS[:2], seeds=list(range(10)))

    assert [(job.part.checkpoint, job.part.first, job.part.images) for job in planned.jobs] == [
        ("a_000000500", 0, 4),
        ("a_000000500", 4, 4),
        ("a_000000500", 8, 2),
        ("final", 0, 4),
        ("final", 4, 4),
        ("final", 8, 2),
    ]
    assert [prompt.seed for job in planned.jobs for prompt in job.request.prompts] == [*range(10), *range(10)]
    assert planned.adapter_lists == 2


def test_a_sweep_that_is_too_large_is_refused_with_its_product():
    with pytest.raises(InvalidRequest) as found:
        plan(
            limits=ApiSettings(max_sweep_images=25),
            prompts=[{"prompt": "a"}, {"prompt": "b"}],
            checkpoints=CHECKPOINTS,
            multipliers=[0.5, 1],
            seeds=[1, 2, 3],
        )
    assert str(found.value) == (
        "(2 checkpoints x 2 multipliers + base) x 2 prompts x 3 seeds = 30 images; at most 25: leave out values, or "
        "send several sweeps"
    )
    with pytest.raises(
        InvalidRequest, match=r"2 checkpoints x 2 multipliers x 1 prompt = 4 jobs, .*; at most 3: leave"
    ):
        plan(limits=ApiSettings(max_sweep_jobs=3), checkpoints=CHECKPOINTS[:2], multipliers=[0.5, 1])
    with pytest.raises(InvalidRequest, match="1000 values of steps x 100000 seeds = 100,000,000 images"):
        plan_sweep(sweep(seeds=list(range(100_000))).model_copy(update={"steps": list(range(1000))}), LIMITS)


def test_texts_that_are_too_large_together_are_refused_before_they_are_built():
    # 100 images with 100 trigger words of 5,000 characters each.
    with pytest.raises(InvalidRequest, match="50000000 bytes") as found:
        plan(prompts=[{"prompt": "[trigger]" * 100}], trigger_word="x" * 5000, seeds=list(range(100)))
    assert found.value.field == "prompts"


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"multipliers": [0.5]}, "multipliers", "no checkpoint is a file"),
        ({"multipliers": [0.5], "checkpoints": [{"path": None}]}, "multipliers", "no checkpoint is a file"),
        ({"seeds": [4, 5, 4]}, "seeds[2]", "seeds[2] is the same as seeds[0]; give each value once"),
        ({"guidance_scales": [1, 1.0]}, "guidance_scales[1]", "give each value once"),
        ({"sizes": [{"width": 64, "height": 64}] * 2}, "sizes[1]", "give each value once"),
        ({"checkpoints": [{"path": "a", "label": "x"}, {"path": "a"}]}, "checkpoints[1]", "give each value once"),
        ({"checkpoints": [{"path": "x/a.safetensors"}, {"path": "y/a.safetensors"}]}, "checkpoints[1].label", "'a'"),
        ({"checkpoints": [{"path": None}, {"path": "base"}]}, "checkpoints[1].label", "'base'"),
        ({"preset": "none"}, "preset", "no preset"),
    ],
)
def test_values_that_no_image_could_show_are_refused(fields, field, message):
    with pytest.raises(InvalidRequest) as found:
        plan(**fields)

    assert found.value.field == field
    assert message in str(found.value)


def test_a_path_without_a_form_is_refused_as_that_of_its_checkpoint():
    with pytest.raises(AdapterRefused) as found:
        plan(checkpoints=[{"path": "a"}, {"path": "ftp://host/a.safetensors"}])
    assert found.value.field == "checkpoints[1].path"


@pytest.mark.parametrize("seed", [-1, -2])
def test_a_random_seed_is_no_value_of_an_axis(seed):
    with pytest.raises(ValidationError, match=r"list the seeds, such as \[42, 43\]"):
        sweep(seeds=[seed])


def test_labels_come_from_the_names_of_files():
    paths = [
        "hf://owner/repo/folder/step_500.safetensors@refs/pr/1",
        "https://host/files/my%20lora.safetensors?download=true",
        "s3://bucket/runs/b.safetensors",
        f"upload:mine.safetensors@{'0' * 64}",
        "run/no_suffix",
    ]

    jobs = plan(checkpoints=[{"path": path} for path in paths]).jobs

    assert [job.part.checkpoint for job in jobs] == ["step_500", "my lora", "b", "mine", "no_suffix"]


def test_fields_and_messages_about_a_job_name_the_parts_of_the_sweep():
    planned = plan(
        limits=ApiSettings(max_prompts=6),
        prompts=[{"prompt": "a cat"}, {"prompt": "a dog", "sample_steps": 3}],
        sizes=[{"width": 64, "height": 64}, {"width": 128, "height": 64}],
        seeds=[1, 2],
        guidance_scales=[4],
        checkpoints=CHECKPOINTS,
        loras=[{"path": "style.safetensors"}],
    )
    # The images of a list: cat 64 (seeds 1, 2), cat 128, dog 64, dog 128 in a second job.
    first, second, *_, base = planned.jobs

    assert first.rename("prompts[4].prompt") == "prompts[1].prompt"
    assert first.rename("prompts[2].width: too large") == "sizes[1].width: too large"
    assert first.rename("prompts[3].seed") == "seeds[1]"
    assert first.rename("prompts[5].sample_steps") == "prompts[1].sample_steps"
    assert second.rename("prompts[0].height") == "sizes[1].height"
    assert second.rename("prompts[1].guidance_scale is 4") == "guidance_scales[0] is 4"
    assert first.rename("prompts[2] is odd") == "prompts[0] is odd"
    assert first.rename("loras[0].path") == "checkpoints[0].path"
    assert first.rename("loras[1].path") == "loras[0].path"
    assert base.rename("loras[0].path") == "loras[0].path"
    assert first.rename("model") == "model"
    with pytest.raises(KeyForbids) as found, second.renaming():
        raise KeyForbids("prompts[0].width is forbidden", field="prompts[0].width")
    assert (str(found.value), found.value.field) == ("sizes[1].width is forbidden", "sizes[1].width")
