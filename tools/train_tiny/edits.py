"""Make up pairs of pictures, before and after an edit, with the instruction that leads from one to the other.

Each picture shows one figure on a plain background. An instruction names only what changes: all else, such as the
figure's shape, size and place, is known from the picture before the edit alone.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass, field

from tools.train_tiny.data import COLOURS, SHAPES, Picture, colour_word, shade, unit

#: What an edit changes.
KINDS = ("colour", "background")

_WORDS = {
    "colour": ["make it {}", "make it {}", "make the figure {}", "paint it {}", "change its colour to {}"],
    "background": ["make the background {}", "make the background {}", "put it on a {} background"],
}
# Distance in RGB, 0 to 1, between the figure and the background, below which the two are hard to tell apart.
_LEAST_CONTRAST = 0.4
# Of every changes, one in this number is kept for the score.
_HELD_OUT = 11


@dataclass(frozen=True)
class Edit:
    """A picture of one figure, and what an instruction makes of it.

    Attributes:
        kind: one of `KINDS`.
        shape, colour, background: of the figure after the edit.
        held_out: the score uses this combination of shape, old value and new value, and the training never sees it.
        before, after: tables that differ in one property.
    """

    kind: str
    shape: str
    colour: str
    background: str
    instruction: str
    held_out: bool
    before: Picture = field(repr=False)
    after: Picture = field(repr=False)


def random_edit(rng: random.Random, *, held_out: bool = False) -> Edit:
    """Make up an edit that is held out for the score, or one of the others."""
    while True:
        made = _edit(rng)
        if made is not None and made.held_out == held_out:
            return made


def _edit(rng: random.Random) -> Edit | None:
    """Make up an edit; None if there is little to see of it."""
    kind = rng.choices(KINDS, weights=(2, 1))[0]
    names = list(COLOURS)
    shape, colour, background = rng.choice(SHAPES), rng.choice(names), rng.choice([*names, *(8 * ["white"])])
    radius = rng.uniform(0.24, 0.6)
    reach = min(0.55, 0.95 - radius)
    x, y = rng.uniform(-reach, reach), rng.uniform(-reach, reach)
    before = Picture()
    before.add(shape, x, y, radius, shade(rng, colour))
    ground = shade(rng, background)
    before.background = [0.0, *ground, *ground]
    after = copy.deepcopy(before)
    old, new = colour if kind == "colour" else background, rng.choice(names)
    instruction = rng.choice(_WORDS[kind]).format(colour_word(rng, new))
    was_clear = _is_clear(colour, background)
    if kind == "colour":
        colour, after.figures[0][6:9] = new, unit(new)
    else:
        background, after.background = new, [0.0, *unit(new), *unit(new)]
    if new == old or not (was_clear and _is_clear(colour, background)):
        return None
    number = names.index(old) * 5 + names.index(new) * 7 + SHAPES.index(shape) * 3
    return Edit(kind, shape, colour, background, instruction, number % _HELD_OUT == 0, before, after)


def _is_clear(colour: str, background: str) -> bool:
    """Return whether a figure of this colour stands out from the background."""
    return math.dist(unit(colour), unit(background)) >= _LEAST_CONTRAST
