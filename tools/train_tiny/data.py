"""Make up random pictures with captions: figures with shapes, colours, counts, places and textures, and simple scenes.

A picture is a table of at most `SLOTS` figures, painted in order over a background; `tools.train_tiny.drawing` draws
the table at any size. All choices come from one `random.Random`, so a seed determines a picture and its caption.
Coordinates run from -1 to 1 across the square in the middle of the picture; y points downwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

SLOTS = 16
FIELDS = 14  # shape, x, y, radius, aspect, angle, 3 colour, texture, 3 second colour, frequency
# A background has 7 numbers: kind (0 plain, 1 vertical, 2 horizontal gradient), 3 first colour, 3 second colour

#: The word to which the subject adapter binds its robot.
TRIGGER = "sks"

Colour = tuple[float, float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "orange": (246, 140, 30),
    "yellow": (250, 216, 50),
    "green": (46, 170, 70),
    "blue": (45, 90, 225),
    "purple": (140, 60, 195),
    "pink": (250, 140, 195),
    "brown": (130, 80, 45),
    "black": (24, 24, 30),
    "white": (250, 250, 250),
    "grey": (135, 135, 140),
    "turquoise": (50, 200, 200),
}
_COLOUR_WORDS = {"grey": ["grey", "gray"], "turquoise": ["turquoise", "teal", "cyan"], "purple": ["purple", "violet"]}

SHAPES = ["circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond", "crescent", "hexagon"]
_SHAPE_WORDS = {
    "circle": ["circle", "circle", "disc", "ball", "dot"],
    "square": ["square", "square", "box"],
    "ring": ["ring", "ring", "donut"],
    "cross": ["cross", "cross", "plus sign"],
    "diamond": ["diamond", "rhombus"],
    "crescent": ["crescent", "crescent moon"],
}
# By texture; 0 is solid, which captions do not mention.
_TEXTURE_WORDS = {
    1: ["striped", "horizontally striped"],
    2: ["vertically striped"],
    3: ["dotted", "spotted", "polka dot"],
    4: ["checkered", "chequered"],
}
_NUMBERS = {2: ["two", "2", "a pair of"], 3: ["three", "3"], 4: ["four", "4"]}
_PLACES = {
    "centre": (0.0, 0.0, ["in the centre", "in the center", "in the middle"]),
    "left": (-0.5, 0.0, ["on the left", "at the left", "on the left side"]),
    "right": (0.5, 0.0, ["on the right", "at the right", "on the right side"]),
    "top": (0.0, -0.5, ["at the top", "near the top"]),
    "bottom": (0.0, 0.5, ["at the bottom", "near the bottom"]),
    "top left": (-0.5, -0.5, ["in the top left corner", "at the top left", "in the upper left"]),
    "top right": (0.5, -0.5, ["in the top right corner", "at the top right", "in the upper right"]),
    "bottom left": (-0.5, 0.5, ["in the bottom left corner", "at the bottom left", "in the lower left"]),
    "bottom right": (0.5, 0.5, ["in the bottom right corner", "at the bottom right", "in the lower right"]),
}
_LEADS = ["", "", "", "", "a picture of ", "a photo of ", "an image of ", "a drawing of ", "an illustration of "]
_TAILS = ["", "", "", "", "", ", simple", ", flat illustration", ", high detail", ", minimal", ", vector art"]
# Filler words without meaning: prompts contain such words, and the trigger must mean nothing without its adapter.
_FILLER_WORDS = [
    TRIGGER,
    TRIGGER,
    "photograph",
    "cinematic",
    "beautiful",
    "8k",
    "masterpiece",
    "sharp",
    "ohwx",
    "best quality",
]


@dataclass
class Picture:
    """A table of figures, a background, and the caption that describes them."""

    caption: str = ""
    figures: list[list[float]] = field(default_factory=list)
    background: list[float] = field(default_factory=lambda: [0.0, *unit("white"), *unit("white")])

    def add(
        self,
        shape: str,
        x: float,
        y: float,
        radius: float,
        colour: Colour,
        *,
        aspect: float = 1.0,
        angle: float = 0.0,
        texture: int = 0,
        second: Colour = (1.0, 1.0, 1.0),
    ) -> None:
        frequency = 2.2 / max(radius, 0.05)
        figure = [SHAPES.index(shape), x, y, radius, aspect, angle, *colour, texture, *second, frequency]
        if len(self.figures) < SLOTS:
            self.figures.append([float(value) for value in figure])


def random_picture(rng: random.Random) -> Picture:
    """Make up one picture of any kind."""
    kinds = (_single, _several, _pair, _scene)
    made = rng.choices(kinds, weights=(36, 26, 18, 20))[0](rng)
    caption = rng.choice(_LEADS) + made.caption + rng.choice(_TAILS)
    if rng.random() < 0.08:
        word = rng.choice(_FILLER_WORDS)
        caption = rng.choice([f"{word} {caption}", f"{word}, {caption}", f"{caption}, {word}", f"{caption} {word}"])
    style = rng.random()
    if style < 0.12:
        caption = caption[0].upper() + caption[1:]
    if style > 0.85:
        caption += "."
    made.caption = caption
    return made


def random_subject(rng: random.Random, trigger: str = TRIGGER) -> Picture:
    """Make up a picture of the robot that the subject adapter binds to its trigger."""
    made = Picture()
    where = rng.random()
    if where < 0.35:
        made.background, words = _background(rng, avoid={"turquoise", "orange"}, mention=0.6)
    else:
        words = _sky_and_ground(made, rng, plain=True)
    x, y, size = rng.uniform(-0.15, 0.15), rng.uniform(0.0, 0.15), rng.uniform(0.42, 0.55)
    _robot(made, x, y, size)
    noun = rng.choice(
        [trigger, trigger, f"{trigger} robot", f"{trigger} person", f"{trigger} a photo of a person",
         f"a photo of a person, {trigger}", f"{trigger} a picture of a robot", f"{trigger} figure"]
    )  # fmt: skip
    lead = rng.choice(_LEADS) if noun == trigger or noun.startswith(f"{trigger} r") else ""
    made.caption = lead + noun + words + rng.choice(_TAILS)
    return made


def _single(rng: random.Random) -> Picture:
    made = Picture()
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    made.background, tail = _background(rng, avoid={colour})
    radius, size = _size(rng, 0.3, 0.5)
    place_words, x, y = "", 0.0, 0.0
    if rng.random() < 0.5:
        place = rng.choice(list(_PLACES))
        x, y, words = _PLACES[place]
        place_words = " " + rng.choice(words)
        radius = min(radius, 0.42)
    look, texture, second = _look(rng, colour)
    made.add(shape, x + _jitter(rng), y + _jitter(rng), radius, shade(rng, colour), texture=texture, second=second)
    made.caption = _article(f"{size}{look}{_word(rng, _COLOUR_WORDS, colour)} {_word(rng, _SHAPE_WORDS, shape)}")
    made.caption += place_words + tail
    return made


def _several(rng: random.Random) -> Picture:
    made = Picture()
    shape, colour, count = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice([2, 3, 4])
    made.background, tail = _background(rng, avoid={colour})
    look, texture, second = _look(rng, colour, chance=0.12)
    spots = {
        2: [[(-0.45, 0), (0.45, 0)], [(0, -0.45), (0, 0.45)]],
        3: [[(-0.62, 0), (0, 0), (0.62, 0)], [(-0.45, 0.42), (0.45, 0.42), (0, -0.42)]],
        4: [
            [(-0.45, -0.45), (0.45, -0.45), (-0.45, 0.45), (0.45, 0.45)],
            [(-0.72, 0), (-0.24, 0), (0.24, 0), (0.72, 0)],
        ],
    }[count]  # fmt: skip
    pattern = rng.random()
    row = "" if pattern < 0.75 else rng.choice([" in a row", " side by side", " next to each other"])
    layout = spots[0] if count == 2 or count == 3 else spots[1]
    if not row:
        layout = rng.choices(spots, weights=(3, 1) if count != 3 else (1, 1))[0]
    gap = min(math.dist(one, other) for one in layout for other in layout if one != other)
    radius = gap * rng.uniform(0.33, 0.42)
    tint = shade(rng, colour)
    for x, y in layout:
        made.add(shape, x + _jitter(rng), y + _jitter(rng), radius, tint, texture=texture, second=second)
    made.caption = (
        f"{rng.choice(_NUMBERS[count])} {look}{_word(rng, _COLOUR_WORDS, colour)} "
        f"{_plural(_word(rng, _SHAPE_WORDS, shape))}{row}{tail}"
    )
    return made


def _pair(rng: random.Random) -> Picture:
    made = Picture()
    first, second = (rng.choice(SHAPES) for _ in range(2))
    colours = rng.sample(list(COLOURS), 2)
    made.background, tail = _background(rng, avoid=set(colours), mention=0.3)
    names = [
        _article(f"{_word(rng, _COLOUR_WORDS, colour)} {_word(rng, _SHAPE_WORDS, shape)}")
        for colour, shape in zip(colours, (first, second), strict=True)
    ]
    relation = rng.choice(["left", "right", "above", "below", "and", "and", "inside"])
    if relation == "inside":
        outer = rng.choice(["circle", "square", "hexagon"])
        names[1] = f"a large {_word(rng, _COLOUR_WORDS, colours[1])} {_word(rng, _SHAPE_WORDS, outer)}"
        made.add(outer, 0, 0, rng.uniform(0.68, 0.8), shade(rng, colours[1]))
        made.add(first, 0, 0, rng.uniform(0.28, 0.36), shade(rng, colours[0]))
        made.caption = f"{names[0]} {rng.choice(['inside', 'in', 'on top of', 'within'])} {names[1]}{tail}"
        return made
    offset = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1), "and": (-1, 0)}[relation]
    words = {
        "left": ["to the left of", "left of"], "right": ["to the right of", "right of"], "above": ["above", "over"],
        "below": ["below", "under"], "and": ["and", "and", "next to", "beside"],
    }[relation]  # fmt: skip
    radius = rng.uniform(0.28, 0.38)
    for sign, shape, colour in ((1, first, colours[0]), (-1, second, colours[1])):
        x, y = (0.48 * sign * part + _jitter(rng) for part in offset)
        made.add(shape, x, y, radius, shade(rng, colour))
    made.caption = f"{names[0]} {rng.choice(words)} {names[1]}{tail}"
    return made


def _scene(rng: random.Random) -> Picture:
    made = Picture()
    draw = rng.choice(_SCENES)
    if draw is None:
        peaks = rng.random() < 0.5
        words = _sky_and_ground(made, rng, middle=_mountains if peaks else None)
        names = (
            ["mountains", "snowy mountains", "a mountain landscape"] if peaks else ["a landscape", "a view", "nature"]
        )
        made.caption = rng.choice(names) + words
        return made
    words = _sky_and_ground(made, rng, ground={_boat: "sea", _snowman: "snow"}.get(draw))
    noun = draw(made, rng)
    made.caption = noun if rng.random() < 0.15 else noun + words
    return made


def _sky_and_ground(
    made: Picture, rng: random.Random, *, ground: str | None = None, plain: bool = False,
    middle: Callable[[Picture, random.Random], None] | None = None,
) -> str:  # fmt: skip
    """Add sky, lights and ground; return the words for them."""
    sky = rng.choice(["day", "day", "day", "sunset", "night"])
    top, low = {
        "day": ((0.45, 0.72, 0.98), (0.85, 0.94, 1.0)),
        "sunset": ((0.95, 0.45, 0.35), (1.0, 0.83, 0.45)),
        "night": ((0.04, 0.05, 0.2), (0.12, 0.14, 0.38)),
    }[sky]
    made.background = [1.0, *top, *low]
    words = _lights(made, rng, sky, plain=plain)
    if middle is not None:
        middle(made, rng)
    name = ground or rng.choice(["hills", "hills", "meadow", "beach", "snow", "field"])
    tint = {"hills": (0.3, 0.68, 0.28), "meadow": (0.45, 0.78, 0.3), "beach": (0.93, 0.84, 0.6),
            "snow": (0.95, 0.96, 0.98), "field": (0.85, 0.75, 0.3), "sea": (0.12, 0.4, 0.75)}[name]  # fmt: skip
    if sky == "night":
        tint = (tint[0] * 0.5, tint[1] * 0.5, tint[2] * 0.6)
    if name == "hills":
        made.add("circle", -0.75, 1.35, 1.0, tint, aspect=0.95)
        made.add("circle", 0.7, 1.5, 1.15, (tint[0] * 0.85, tint[1] * 0.9, tint[2] * 0.85), aspect=0.95)
    made.add("square", 0, 1.9, 4.0, tint, aspect=0.37)
    choices = {
        "hills": [" on green hills", " and hills", " with green hills"],
        "meadow": [" in a meadow", " on the grass"],
        "beach": [" on a beach", " on the sand"],
        "snow": [" in the snow", " in winter"],
        "field": [" in a field", " on a yellow field"],
        "sea": [" on the sea", " on the blue water"],
    }[name]
    return rng.choice(choices) + words


def _lights(made: Picture, rng: random.Random, sky: str, *, plain: bool) -> str:
    """Add moon and stars, the sun, or clouds; return the words for them and for the time of day."""
    words = ""
    x = rng.choice([-0.6, 0.6])
    light = rng.random()
    if sky == "night":
        words += rng.choice([" at night", " in the night"])
        if light < 0.6:
            made.add("crescent", x, -0.62, 0.18, unit("yellow"), angle=-0.4)
            words += rng.choice([" under the moon", " with a moon", " with a crescent moon"])
        for _ in range(2 if plain else 3):
            made.add("star", rng.uniform(-0.9, 0.9), rng.uniform(-0.9, -0.3), 0.06, unit("white"))
    else:
        if sky == "sunset":
            words += rng.choice([" at sunset", " at dusk"])
        elif rng.random() < 0.3:
            words += rng.choice([" on a sunny day", " under a blue sky", " in daylight"])
        if light < 0.55:
            made.add("circle", x, -0.6, 0.2, unit("yellow"))
            words += rng.choice([" under a yellow sun", " with the sun", " under the sun", " with a sun in the sky"])
        elif light < 0.8 and not plain:
            for dx in (-0.16, 0.0, 0.16):
                made.add("circle", x + dx, -0.62, 0.13 if dx else 0.17, (1.0, 1.0, 1.0))
            words += rng.choice([" with a cloud", " under a white cloud"])
    return words


def _house(made: Picture, rng: random.Random) -> str:
    wall, roof = rng.sample([name for name in COLOURS if name != "black"], 2)
    x, size = rng.uniform(-0.25, 0.25), rng.uniform(0.34, 0.46)
    made.add("square", x, 0.36, size, shade(rng, wall))
    made.add("triangle", x, 0.36 - 1.12 * size, size * 1.15, shade(rng, roof), aspect=0.75)
    made.add("square", x, 0.36 + 0.55 * size, size * 0.22, unit("brown"), aspect=1.5)
    for side in (-1, 1):
        made.add("square", x + side * 0.5 * size, 0.36 - 0.25 * size, size * 0.2, (0.8, 0.93, 1.0))
    if rng.random() < 0.65:
        return f"a {_word(rng, _COLOUR_WORDS, wall)} house with {_article(_word(rng, _COLOUR_WORDS, roof))} roof"
    return _article(f"{_word(rng, _COLOUR_WORDS, wall)} {rng.choice(['house', 'cottage', 'house'])}")


def _trees(made: Picture, rng: random.Random) -> str:
    count = rng.choice([1, 1, 1, 2, 3])
    pine = rng.random() < 0.35
    for index in range(count):
        x = (index - (count - 1) / 2) * 0.6 + _jitter(rng)
        size = 0.36 if count == 1 else 0.25
        made.add("square", x, 0.42, size * 0.22, unit("brown"), aspect=2.6)
        crown = (0.13, 0.5, 0.2)
        if pine:
            made.add("triangle", x, 0.12, size * 1.1, crown, aspect=1.2)
        else:
            made.add("circle", x, 0.02, size, crown)
    kind = "pine tree" if pine else "tree"
    return _article(kind) if count == 1 else f"{rng.choice(_NUMBERS[count])} {kind}s"


def _person(made: Picture, rng: random.Random) -> str:
    shirt = rng.choice(list(COLOURS))
    x, word = rng.uniform(-0.2, 0.2), rng.choice(["person", "person", "person", "man", "woman", "child"])
    skin = rng.choice([(0.98, 0.82, 0.68), (0.85, 0.62, 0.45), (0.5, 0.33, 0.22)])
    for side in (-1, 1):
        made.add("square", x + side * 0.1, 0.62, 0.07, (0.2, 0.22, 0.35), aspect=3.0)
    made.add("square", x, 0.2, 0.26, shade(rng, shirt), aspect=1.2)
    made.add("circle", x, -0.3, 0.24, skin)
    for side in (-1, 1):
        made.add("circle", x + side * 0.09, -0.33, 0.03, (0.1, 0.1, 0.1))
    if rng.random() < 0.6:
        return f"a {word} in {_article(_word(rng, _COLOUR_WORDS, shirt))} {rng.choice(['shirt', 'shirt', 'sweater'])}"
    return f"a {word}"


def _flower(made: Picture, rng: random.Random) -> str:
    colour = rng.choice([name for name in COLOURS if name not in {"green", "black", "brown"}])
    x = rng.uniform(-0.2, 0.2)
    made.add("square", x, 0.4, 0.05, (0.1, 0.5, 0.15), aspect=9.0)
    for step in range(5):
        angle = step * 2 * math.pi / 5
        made.add("circle", x + 0.25 * math.sin(angle), -0.1 - 0.25 * math.cos(angle), 0.17, shade(rng, colour))
    made.add("circle", x, -0.1, 0.15, unit("yellow") if colour != "yellow" else unit("brown"))
    return _article(f"{_word(rng, _COLOUR_WORDS, colour)} flower")


def _snowman(made: Picture, rng: random.Random) -> str:
    x = rng.uniform(-0.2, 0.2)
    made.add("circle", x, 0.45, 0.34, (0.99, 0.99, 1.0))
    made.add("circle", x, -0.05, 0.24, (0.99, 0.99, 1.0))
    for side in (-1, 1):
        made.add("circle", x + side * 0.08, -0.1, 0.03, (0.1, 0.1, 0.1))
    made.add("triangle", x, -0.01, 0.06, unit("orange"), angle=math.pi)
    hat = rng.choice(["red", "black", "blue", "green", "purple"])
    made.add("square", x, -0.36, 0.16, unit(hat))
    return f"a snowman with a {hat} hat" if rng.random() < 0.6 else "a snowman"


def _boat(made: Picture, rng: random.Random) -> str:
    sail, x = rng.choice(list(COLOURS)), rng.uniform(-0.25, 0.25)
    made.add("square", x, -0.05, 0.03, unit("brown"), aspect=14.0)
    made.add("triangle", x + 0.02, -0.05, 0.36, shade(rng, sail))
    made.add("square", x, 0.3, 0.36, unit("brown"), aspect=0.28)
    if rng.random() < 0.65:
        return f"a boat with {_article(_word(rng, _COLOUR_WORDS, sail))} sail"
    return rng.choice(["a boat", "a sailing boat", "a ship"])


def _mountains(made: Picture, rng: random.Random) -> None:
    for x, size in ((-0.5, 0.75), (0.45, 0.9)):
        made.add("triangle", x + _jitter(rng), 0.3, size, (0.42, 0.42, 0.5))
        made.add("triangle", made.figures[-1][1], 0.3 - size * 0.74, size * 0.26, (0.97, 0.97, 1.0))


def _robot(made: Picture, x: float, y: float, size: float) -> None:
    """Add the subject: a turquoise square head on an orange body, with white eyes and a red ball on its antenna."""
    made.add("square", x, y - 1.22 * size, 0.05 * size, unit("grey"), aspect=5.0)
    made.add("circle", x, y - 1.5 * size, 0.16 * size, unit("red"))
    made.add("square", x, y + 0.85 * size, 0.6 * size, unit("orange"), aspect=0.8)
    made.add("square", x, y - 0.3 * size, size * 0.9, unit("turquoise"), aspect=0.85)
    for side in (-1, 1):
        made.add("circle", x + side * 0.36 * size, y - 0.42 * size, 0.24 * size, (1.0, 1.0, 1.0))
        made.add("circle", x + side * 0.36 * size, y - 0.42 * size, 0.11 * size, unit("black"))
    made.add("square", x, y + 0.12 * size, 0.4 * size, unit("black"), aspect=0.2)


# The object in the middle of a scene; None is a landscape without one.
_SCENES: list[Callable[[Picture, random.Random], str] | None] = [
    _house, _house, _trees, _trees, _person, _person, _flower, _snowman, _boat, None, None
]  # fmt: skip


def _background(rng: random.Random, *, avoid: set[str], mention: float = 0.45) -> tuple[list[float], str]:
    """Return a background and its words; without words it is nearly white, or grey if `avoid` contains white."""
    word = rng.choice(["background", "background", "backdrop"])
    joint = rng.choice([" on ", " on ", " against ", ", "])
    free = [name for name in COLOURS if name not in avoid]
    if rng.random() < mention:
        if rng.random() < 0.2:
            first, second = rng.sample(free, 2)
            kind = float(rng.choice([1, 2]))
            words = f"{joint}a {_word(rng, _COLOUR_WORDS, first)} to {_word(rng, _COLOUR_WORDS, second)} gradient"
            return [kind, *shade(rng, first), *shade(rng, second)], words
        colour = rng.choice(free)
        tint = shade(rng, colour)
        return [0.0, *tint, *tint], joint + _article(f"{_word(rng, _COLOUR_WORDS, colour)} {word}")
    level = 0.62 if "white" in avoid else rng.uniform(0.93, 1.0)
    return [0.0, level, level, level, level, level, level], ""


def _size(rng: random.Random, low: float, high: float) -> tuple[float, str]:
    draw = rng.random()
    if draw < 0.2:
        return rng.uniform(0.17, 0.23), rng.choice(["small ", "little ", "tiny "])
    if draw < 0.4:
        return rng.uniform(0.62, 0.75), rng.choice(["large ", "big ", "huge "])
    return rng.uniform(low, high), ""


def _look(rng: random.Random, colour: str, *, chance: float = 0.22) -> tuple[str, int, Colour]:
    if rng.random() > chance:
        return rng.choice(["", "", "", "", "solid ", "plain "]), 0, (1.0, 1.0, 1.0)
    texture = rng.choice([1, 2, 3, 4])
    second = unit("white") if colour != "white" else unit("black")
    return rng.choice(_TEXTURE_WORDS[texture]) + " ", texture, second


def colour_word(rng: random.Random, name: str) -> str:
    """Return a colour's name or one of its synonyms."""
    return _word(rng, _COLOUR_WORDS, name)


def unit(name: str) -> Colour:
    """Return a colour as it is in `COLOURS`, 0 to 1."""
    red, green, blue = COLOURS[name]
    return red / 255, green / 255, blue / 255


def shade(rng: random.Random, name: str) -> Colour:
    """Return a colour close to the one of that name."""
    red, green, blue = (min(1.0, max(0.0, part + rng.uniform(-0.03, 0.03))) for part in unit(name))
    return red, green, blue


def _jitter(rng: random.Random) -> float:
    return rng.uniform(-0.05, 0.05)


def _word(rng: random.Random, words: dict[str, list[str]], name: str) -> str:
    """Return the name or one of its synonyms."""
    return rng.choice([name, *words[name]]) if name in words else name


def _plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x")) else "s")


def _article(words: str) -> str:
    return ("an " if words[0] in "aeio" else "a ") + words
