"""Read the header `Prefer`, by which a caller asks to wait for a job, or not to wait.

Source:
    RFC 7240, "Prefer Header for HTTP", https://www.rfc-editor.org/rfc/rfc7240
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# A list with commas, which quoted texts may hold too.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
# No setting allows longer waits than these digits can say.
_SECONDS = re.compile(r'"?(\d{1,10})"?')


def preferred_wait_s(headers: Sequence[str], *, longest_s: float) -> int:
    """Return the whole seconds to wait, at most `longest_s`; 0 if the caller does not want to wait.

    A preference that cannot be read counts as not given, as the RFC demands, and of several the first counts.
    """
    for name, value in _preferences(headers):
        if name == "wait":
            seconds = _SECONDS.fullmatch(value)
            return min(int(seconds[1]), int(longest_s)) if seconds and value.isascii() else 0
    return 0


def prefers_no_wait(headers: Sequence[str]) -> bool:
    """Return whether the caller wants an answer as soon as the job is accepted."""
    return any(name == "respond-async" for name, _ in _preferences(headers))


def _preferences(headers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the preferences in their order, with their values; one without a value has an empty text."""
    for preference in _PREFERENCE.findall(",".join(headers)):
        name, _, value = preference.partition(";")[0].partition("=")
        yield name.strip().lower(), value.strip()
