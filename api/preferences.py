"""Read the header `Prefer`, by which a caller asks to wait for a job.

Source:
    RFC 7240, "Prefer Header for HTTP", https://www.rfc-editor.org/rfc/rfc7240
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# A list with commas, which quoted texts may hold too.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
# No setting allows longer waits than these digits can say.
_SECONDS = re.compile(r'"?(\d{1,10})"?')


def preferred_wait_s(headers: Sequence[str], *, longest_s: float) -> int:
    """Return the whole seconds to wait, at most `longest_s`; 0 if the caller does not want to wait.

    A preference that cannot be read counts as not given, as the RFC demands, and of several the first counts.
    """
    for preference in _PREFERENCE.findall(",".join(headers)):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() != "wait":
            continue
        seconds = _SECONDS.fullmatch(value.strip())
        return min(int(seconds[1]), int(longest_s)) if seconds and value.isascii() else 0
    return 0
