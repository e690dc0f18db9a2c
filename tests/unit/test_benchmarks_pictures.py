"""`benchmarks.pictures` finds the figures in pictures that another library draws."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from benchmarks.pictures import figures, mistakes

RED, BLUE, YELLOW = (222, 40, 40), (45, 90, 225), (250, 216, 50)


@pytest.fixture
def paper():
    """A white picture of 200x200 pixels and a pen to draw on it."""
    image = Image.new("RGB", (200, 200), (250, 250, 250))
    return image, ImageDraw.Draw(image)


def case(*things, **fields):
    objects = [dict(zip(("colour", "shape", "count"), thing, strict=True)) for thing in things]
    return {"objects": objects, **fields}


def test_a_figure_is_found_with_its_colour_shape_place_and_size(paper):
    image, pen = paper
    pen.ellipse((120, 20, 180, 80), fill=RED)

    [found] = figures(image)

    assert (found.colour, found.shape) == ("red", "circle")
    # The centre is at (150, 50) of 200 and the radius is 30: 150 / 100 - 1, 50 / 100 - 1, 30 / 100.
    assert (found.x, found.y, found.radius) == pytest.approx((0.5, -0.5, 0.3), abs=0.02)


def test_only_the_named_figures_make_no_mistake(paper):
    image, pen = paper
    pen.rectangle((20, 80, 60, 120), fill=BLUE)
    pen.ellipse((130, 80, 170, 120), fill=RED)
    found = figures(image)

    assert mistakes(case(("blue", "square", 1), ("red", "circle", 1), relation="left"), found) == []
    assert mistakes(case(("red", "circle", 1), ("blue", "square", 1), relation="left"), found) == ["not left"]
    assert mistakes(case(("blue", "square", 1)), found) == ["2 figures, not 1"]
    assert mistakes(case(("blue", "square", 2)), found) == ["1 blue square, not 2"]
    assert mistakes(case(("red", "square", 1), ("blue", "circle", 1)), found) == [
        "0 red square, not 1",
        "0 blue circle, not 1",
    ]


def test_a_wrong_place_or_size_is_a_mistake(paper):
    image, pen = paper
    pen.polygon([(30, 20), (10, 60), (50, 60)], fill=YELLOW)
    found = figures(image)

    def wrong(**fields):
        return mistakes({"objects": [{"colour": "yellow", "shape": "triangle", "count": 1, **fields}]}, found)

    assert wrong(place="top left", size="small") == []
    assert wrong(place="left") == ["yellow triangle is not left"]
    assert wrong(size="large") == ["yellow triangle is not large"]


def test_a_blot_has_no_shape_and_a_speck_is_not_a_figure(paper):
    image, pen = paper
    pen.line([(20, 20), (100, 180), (180, 30), (60, 60), (170, 170)], fill=RED, width=9)
    pen.rectangle((5, 190, 9, 194), fill=BLUE)

    [blot] = figures(image)

    assert (blot.colour, blot.shape) == ("red", None)


def test_the_scored_list_has_sixty_different_prompts():
    cases = json.loads((Path(__file__).parents[2] / "benchmarks/tiny_prompts.json").read_text())

    assert len({case["prompt"] for case in cases}) == 60
