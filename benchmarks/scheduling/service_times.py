"""How long slots work on an item: the figures of docs/performance.md."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.job import ItemSpec

_MEGAPIXEL = 1024 * 1024
# Steps with 0 to 3 reference images of a megapixel, relative to one without: measured, but for two images.
_REFERENCE_FACTORS = (1.0, 2.07, 3.37, 4.66)


#: Whether an item needs no swap, one that began during the last step of the item before, or a whole one.
Swap = Literal["none", "begun", "whole"]


@dataclass(frozen=True)
class Stages:
    """The stages of one item on a slot, in s; `store` passes while the slot renders its next item."""

    encode_s: float
    swap_s: float
    denoise_s: float
    decode_s: float
    store_s: float

    @property
    def render_s(self) -> float:
        """Seconds for which the slot can render nothing else."""
        return self.encode_s + self.swap_s + self.denoise_s + self.decode_s


@dataclass(frozen=True)
class ServiceTimes:
    """The times of one card with one model.

    Attributes:
        encode_s: a new prompt that was not prepared while the item before rendered.
        swap_s: what an adapter swap adds.
        begun_swap_s: the same, if the swap began during the last step of the item before.
        step_s: a step by the pixels of the image; times between two sizes are interpolated.
        decode_s: decoding a megapixel.
        store_s: encoding the file and uploading it; the upload is an assumption, and the rest is measured.
        spread: standard deviation of the time of a step between items, relative to the time.
    """

    encode_s: float
    swap_s: float
    begun_swap_s: float
    step_s: Mapping[int, float]
    decode_s: float = 0.09
    store_s: float = 0.3
    spread: float = 0.02

    def stages(self, item_id: str, spec: ItemSpec, *, swap: Swap, is_prepared: bool) -> Stages:
        """Return the times of an item; the same item takes the same time on each slot of this kind.

        Args:
            is_prepared: whether the slot prepared the item while it rendered the one before.
        """
        swap_s = {"none": 0.0, "begun": self.begun_swap_s, "whole": self.swap_s}
        step_s = self.step_s_of(spec.width * spec.height) * _REFERENCE_FACTORS[len(spec.references)]
        chance = random.Random(item_id)
        return Stages(
            encode_s=0.0 if is_prepared else self.encode_s,
            swap_s=swap_s[swap],
            denoise_s=spec.num_inference_steps * step_s * max(0.5, chance.gauss(1.0, self.spread)),
            decode_s=self.decode_s * spec.width * spec.height / _MEGAPIXEL,
            store_s=self.store_s,
        )

    def step_s_of(self, pixels: int) -> float:
        """Return the time of a step of an image with this many pixels and without reference images."""
        sizes = sorted(self.step_s)
        if pixels <= sizes[0] or len(sizes) == 1:
            return self.step_s[sizes[0]] * pixels / sizes[0]
        # Between two sizes, or beyond the largest along the line of the last two.
        upper = next((index for index in range(1, len(sizes)) if pixels <= sizes[index]), len(sizes) - 1)
        low, high = sizes[upper - 1], sizes[upper]
        share = (pixels - low) / (high - low)
        return self.step_s[low] + share * (self.step_s[high] - self.step_s[low])


#: FLUX.2 [dev] with the engine `exact`.
H100 = ServiceTimes(
    encode_s=0.66,
    swap_s=0.64,
    begun_swap_s=0.21,
    step_s={512 * 512: 0.139, _MEGAPIXEL: 0.445, 4 * _MEGAPIXEL: 2.044},
)
H200 = ServiceTimes(encode_s=0.61, swap_s=0.08, begun_swap_s=0.08, step_s={_MEGAPIXEL: 0.450})
#: klein 4B, with two passes a step.
KLEIN = ServiceTimes(encode_s=0.1, swap_s=0.016, begun_swap_s=0.016, step_s={_MEGAPIXEL: 0.117})
