"""Prompts: flags that the trainer would cut, and the words about a prompt that is too long."""

import pytest

from shared.prompt import cut_warning, find_flags


@pytest.mark.parametrize(
    ("prompt", "text", "fields"),
    [
        ("a fox --width 512 --seed 7", "--width 512 --seed 7", ("width", "seed")),
        ("a fox --w 512 --h 256 --d 7", "--w 512 --h 256 --d 7", ("width", "height", "seed")),
        ("a --steps 4 --cfg 3", "--steps 4 --cfg 3", ("sample_steps", "guidance_scale")),
        ("--m 0.5 --n red", "--m 0.5 --n red", ("network_multiplier", "neg")),
        ("a fox\n--seed 7 --d 8", "--seed 7 --d 8", ("seed",)),
        ("a fox --ar 16:9", "--ar 16:9", ()),
        ("a fox --s " + "9" * 100, "--s " + "9" * 56 + "...", ("sample_steps",)),
    ],
)
def test_flags_are_found_with_the_fields_to_use_instead(prompt, text, fields):
    found = find_flags(prompt)

    assert (found.text, found.fields) == (text, fields)


@pytest.mark.parametrize(
    "prompt", ["", "a fox", "a fox -- in snow", "a well--known fox", "a fox --", "---", "a --5 sign"]
)
def test_a_dash_in_running_text_is_no_flag(prompt):
    assert find_flags(prompt) is None


def test_the_warning_about_a_cut_says_where_the_prompt_ends():
    counted = "the prompt has 600 tokens with the model's chat template, and the model reads the first 512: "

    assert cut_warning("prompt", 600, "at the sea") == (
        f"{counted}its end has no effect on the image, from 'at the sea' on; shorten the prompt"
    )
    assert cut_warning("prompt", 600, "") == (
        f"{counted}they hold the whole prompt, but not the end of the template; shorten the prompt a little"
    )
    assert cut_warning("prompt", 600, None) == f"{counted}its end has no effect on the image; shorten the prompt"
