"""The rows in which the ledger counts what attempts used: their names and their numbers.

`scripts/usage.lua` counts them in the step that ends an attempt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Final, Self

from shared.job import AdapterRef, ItemSpec
from shared.settings import QueueSettings
from shared.visible_text import escape_controls

#: Name of the combination without adapters.
BASE: Final = "base"
#: Key and adapters of what has no row of its own, because there are too many, or because they are unknown.
OTHER: Final = "other"

DAY_S: Final = 86_400
# A longer name ends with a hash. Redis holds it once for each day and row.
_MAX_CHARS = 160
_DIGEST_CHARS = 12
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Usage:
    """What attempts used.

    Attributes:
        images: items that succeeded.
        pixel_steps: width, height and steps of these items multiplied, in sum.
        gpu_ms: ms for which the attempts that gave them occupied their devices.
        wasted_gpu_ms: the same of the attempts that ended without an image.
    """

    images: int = 0
    pixel_steps: int = 0
    gpu_ms: int = 0
    wasted_gpu_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the value of a row; numbers that a later version added are left out."""
        return cls(*(int(number) for number in text.split()[:4]))

    def __add__(self, other: Usage) -> Usage:
        # Named one by one: `astuple` copies deeply, which takes 3 s for the 100,000 rows of a report.
        return Usage(
            images=self.images + other.images,
            pixel_steps=self.pixel_steps + other.pixel_steps,
            gpu_ms=self.gpu_ms + other.gpu_ms,
            wasted_gpu_ms=self.wasted_gpu_ms + other.wasted_gpu_ms,
        )


@dataclass(frozen=True)
class UsageRow:
    """What the items of one tenant, API key, model and combination of adapters used in a day (UTC).

    Attributes:
        key_id: empty for jobs that were submitted without a key.
        adapters: their names with " + " between them, without multipliers.
    """

    day: date
    tenant: str
    key_id: str
    model: str
    adapters: str
    usage: Usage

    @classmethod
    def parse(cls, day: date, tenant: str, name: str, text: str) -> Self:
        """Read a field of `usage:{day}:{tenant}`."""
        key_id, model, adapters = name.split("|", 2)
        return cls(day, tenant, key_id, model, adapters, Usage.parse(text))


def pixel_steps(spec: ItemSpec) -> int:
    """Return an item's width, height and steps multiplied."""
    return spec.width * spec.height * spec.num_inference_steps


def usage_ttl_s(settings: QueueSettings) -> int:
    """Return the seconds for which the usage of a day is kept."""
    # With the day itself, which has not ended when its first row is written.
    return (settings.usage_days + 1) * DAY_S


def name_adapters(adapters: Iterable[AdapterRef]) -> str:
    """Return the name of a combination of adapters, of any order and multipliers; at most 160 characters."""
    names = sorted({_name(ref.path) for ref in adapters})
    whole = " + ".join(names) or BASE
    if len(whole) <= _MAX_CHARS:
        return whole
    return f"{whole[: _MAX_CHARS - _DIGEST_CHARS - 1]}~{_digest(whole)}"


def _name(path: str) -> str:
    address, _, query = path.partition("?")
    if query:
        # A query may name the file, or identify its reader: it is kept for as long as people keep tables.
        return escape_controls(f"{address}?{_digest(query)}")
    # Escaped: line breaks and escape sequences would reach terminals and tables.
    # Of the version of an upload, as many digits as people compare.
    place, _, version = address.rpartition("@")
    return escape_controls(f"{place}@{version[:_DIGEST_CHARS]}" if _SHA256.fullmatch(version) else address)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARS]
