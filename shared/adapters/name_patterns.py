"""Match module names against the patterns of a PEFT config, whose authors are strangers.

PEFT takes a key of `rank_pattern` or `alpha_pattern` as a regular expression for the last parts of a module's name. A
hostile expression can run for years, so only expressions with few repeats are tried.

Source:
    get_pattern_key in peft/utils/other.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shared.errors import AdapterRefused

MAX_PATTERNS = 2_000
# Of the patterns, those that are not plain names; to compile this many of the longest takes 0.3 s.
MAX_EXPRESSIONS = 100
MAX_PATTERN_CHARS = 256
# Estimated steps: an unbounded repeat tries up to as many lengths as a name of FLUX.2 has characters. An optional part
# doubles the steps, and 3 stands for their higher cost. Each try costs something for every character of the expression.
# With these weights, 10**8 steps of the worst expressions took 1 s.
_REPEAT_STEPS = 64
_OPTIONAL_STEPS = 3
_CHARACTER_STEPS = 300
_MAX_STEPS = _REPEAT_STEPS**3
_MAX_TOTAL_STEPS = 10**8


class NamePatterns:
    """Numbers by pattern; the first pattern that matches a name counts.

    Args:
        where: what holds the patterns, for messages.

    Raises:
        AdapterRefused: too many patterns, or one that is not tried.
    """

    def __init__(self, numbers: Mapping[str, float], *, where: str) -> None:
        self._numbers = list(numbers.values())
        self._where = where
        self._literals: dict[str, int] = {}
        self._anchored: dict[str, int] = {}
        self._expressions: list[tuple[int, re.Pattern[str]]] = []
        self._steps = 0
        if len(numbers) > MAX_PATTERNS:
            raise AdapterRefused(f"{where} has {len(numbers)} patterns, and the limit is {MAX_PATTERNS}")
        for index, pattern in enumerate(numbers):
            self._add(index, pattern)

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers_of(self, names: Iterable[str]) -> dict[str, float]:
        """Return the number of each name that a pattern matches."""
        names = list(names)
        if self._steps * len(names) > _MAX_TOTAL_STEPS:
            raise self._too_many()
        found = {name: self._find(name) for name in names}
        return {name: self._numbers[index] for name, index in found.items() if index is not None}

    def _add(self, index: int, pattern: str) -> None:
        # Trainers list whole names, which are looked up instead of tried one after the other.
        plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if re.fullmatch(r"[\w.]+", plain):
            (self._anchored if pattern.startswith("^") else self._literals).setdefault(plain, index)
            return
        if len(self._expressions) == MAX_EXPRESSIONS:
            raise self._too_many()
        steps = _steps(pattern)
        if steps is None or steps > _MAX_STEPS:
            raise AdapterRefused(
                f"{self._where}: the pattern {pattern[:80]!r} is not supported; export the adapter with plain module "
                "names"
            )
        self._steps += steps + _CHARACTER_STEPS * len(pattern)
        try:
            self._expressions.append((index, re.compile(pattern)))
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterRefused(f"{self._where}: the pattern {pattern[:80]!r} is no regular expression") from error

    def _too_many(self) -> AdapterRefused:
        return AdapterRefused(f"{self._where} has too many regular expressions; export it with plain module names")

    def _find(self, name: str) -> int | None:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        hits = [self._literals[name[start:]] for start in starts if name[start:] in self._literals]
        hits += [self._anchored[name]] if name in self._anchored else []
        first = min(hits, default=None)
        for index, expression in self._expressions:
            if first is not None and index > first:
                break
            # With a position, `^` matches only at the name's beginning, as in PEFT.
            if any(expression.fullmatch(name, start) for start in starts):
                return index
        return first


def _steps(pattern: str) -> int | None:
    """Estimate how many steps a match takes at most; None for an expression that can take any number."""
    if len(pattern) > MAX_PATTERN_CHARS or re.search(r"\\[1-9]|\(\?(?!:)|\[\]|\[\^\]", pattern):
        return None
    plain = re.sub(r"\[(?:\\.|[^\]\\])*\]", "x", re.sub(r"\\[^\[\]]", "x", pattern)).replace("(?:", "(")
    # A repeated group may hold another repeat.
    if re.search(r"\)[*+{]|[\[\]\\]", plain):
        return None
    repeats, optional = len(re.findall(r"[*+{]", plain)), plain.count("?")
    steps: int = _REPEAT_STEPS**repeats * _OPTIONAL_STEPS**optional * (1 + plain.count("|")) ** max(1, plain.count("("))
    return steps
