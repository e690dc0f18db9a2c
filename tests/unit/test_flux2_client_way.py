"""A way of `flux2 compare` is a request with its settings, whatever the prompts have themselves."""

import pytest

from flux2_client.way import Way

REQUEST = {
    "model": "flux2",
    "loras": [{"path": "mine.safetensors"}],
    "prompts": [{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 2, "sample_steps": 9, "guidance_scale": 3.0}],
}


def test_settings_become_fields_of_the_request_and_of_each_prompt():
    way = Way.parse(
        "B", ["sample_steps=8", "guidance_scale=2.5", "engine=fast", "lora=turbo.safetensors@0.5", "lora=b.safetensors"]
    )

    assert way.apply(REQUEST) == {
        "model": "flux2",
        "engine": "fast",
        "loras": [
            {"path": "mine.safetensors"},
            {"path": "turbo.safetensors", "network_multiplier": 0.5},
            {"path": "b.safetensors"},
        ],
        "prompts": [
            {"prompt": "a", "seed": 1, "sample_steps": 8, "guidance_scale": 2.5},
            {"prompt": "b", "seed": 2, "sample_steps": 8, "guidance_scale": 2.5},
        ],
    }
    assert (
        way.title == "sample_steps=8, guidance_scale=2.5, engine=fast, lora=turbo.safetensors@0.5, lora=b.safetensors"
    )


@pytest.mark.parametrize(
    ("setting", "second"),
    [
        ("sigmas=1,0.5", {"sigmas": [1.0, 0.5], "guidance_scale": 3.0}),
        # Otherwise the prompt's own values would hide the preset.
        ("preset=turbo", {}),
        ("engine=fast", {"sample_steps": 9, "guidance_scale": 3.0}),
    ],
)
def test_a_way_replaces_the_values_of_prompts_that_would_hide_it(setting, second):
    _, prompt = Way.parse("A", [setting]).apply(REQUEST)["prompts"]

    assert prompt == {"prompt": "b", "seed": 2, **second}


def test_a_way_without_settings_is_the_request_itself():
    assert Way.parse("A", []).apply(REQUEST) == REQUEST
    assert Way.parse("A", []).title == "the request as it is"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["steps=3"], "'steps=3' is no setting; write NAME=VALUE with one of: sample_steps, sigmas"),
        (["preset"], "'preset' is no setting"),
        (["sample_steps=many"], "sample_steps=many has no such value"),
        (["sigmas=1;2"], "sigmas=1;2 has no such value"),
        (["preset=a", "preset=b"], "preset is given twice for A"),
    ],
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below
        Way.parse("A", settings)

    assert message in str(refused.value)
