"""The shape of an item: its size, steps and reference images, which determine how long it renders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

from shared.job import ItemSpec

# A side of 16 pixels is one token, for the image and for a reference image, which has about a megapixel.
_PIXELS_PER_TOKEN: Final = 16 * 16
_TEXT_TOKENS: Final = 512
_REFERENCE_TOKENS: Final = 1024 * 1024 // _PIXELS_PER_TOKEN
# Number of tokens at which attention takes as long as the rest of a step. From the steps of FLUX.2 [dev] with 512x512
# to 2048x2048 pixels in docs/performance.md, which the weight follows to 3 %.
_ATTENTION_TOKENS: Final = 44_000
# Classes of sizes for each doubling of the tokens.
_CLASSES_PER_DOUBLING: Final = 4


@dataclass(frozen=True)
class Shape:
    """See the module.

    Attributes:
        tokens: of the image; each step computes them all.
        references: number of reference images.
    """

    tokens: int
    steps: int
    references: int

    @classmethod
    def of(cls, spec: ItemSpec) -> Self:
        """Return the shape of an item."""
        tokens = max(1, spec.width * spec.height // _PIXELS_PER_TOKEN)
        return cls(tokens, spec.num_inference_steps, len(spec.references))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote."""
        tokens, steps, references = text.split()
        return cls(int(tokens), int(steps), int(references))

    def __str__(self) -> str:
        return f"{self.tokens} {self.steps} {self.references}"

    @property
    def step_weight(self) -> float:
        """The time of a step relative to others of the model on the same device; no unit."""
        tokens = self.tokens + _TEXT_TOKENS + self.references * _REFERENCE_TOKENS
        return tokens * (1 + tokens / _ATTENTION_TOKENS)

    @property
    def size_class(self) -> str:
        """The name under which steps of about the same size, with as many references, are measured together."""
        return f"{round(_CLASSES_PER_DOUBLING * math.log2(self.tokens))}r{self.references}"
