"""Find the adapters whose names are most like one that does not exist, at a bounded cost.

A folder may hold 100,000 files, and a refused submit must not take longer than an accepted one. So only some entries
are looked at, first those of the folder that the caller named.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path, PurePosixPath

from shared.safetensors_header import SUFFIX

_MAX_NAMES = 3
_MAX_ENTRIES = 4000
_MAX_FOLDERS = 200
_MAX_CANDIDATES = 1000
# Comparing two texts takes up to the product of their lengths, so only the best by a quick estimate are compared.
_MAX_COMPARED = 20
_MAX_CHARS = 200
# difflib's own bound for names that a person may have meant.
_MIN_RATIO = 0.6


def find_nearest(path: str, *, base: Path, follow_symlinks: bool) -> list[str]:
    """Return up to three adapters, relative to the folder `base`, in the order of their likeness to `path`."""
    if len(path) > _MAX_CHARS:
        return []
    named = Path(os.path.normpath(base / path))
    wanted = named.relative_to(base).as_posix() if named.is_relative_to(base) else path
    near = _nearest_folder(named.parent, base)
    found = islice(_candidates(base, near, follow_symlinks=follow_symlinks), _MAX_CANDIDATES)
    whole, last = _matchers(wanted)

    def estimate(name: str) -> float:
        _compare_with(whole, last, name)
        return max(whole.quick_ratio(), last.quick_ratio())

    def ratio(name: str) -> float:
        _compare_with(whole, last, name)
        return max(whole.ratio(), last.ratio())

    best = heapq.nlargest(_MAX_COMPARED, dict.fromkeys(found), key=estimate)
    rated = sorted(((ratio(name), name) for name in best), key=lambda entry: (-entry[0], entry[1]))
    return [name for likeness, name in rated if likeness >= _MIN_RATIO][:_MAX_NAMES]


def _nearest_folder(folder: Path, base: Path) -> Path:
    """Return the deepest folder of a path that exists below `base`, or `base`."""
    while folder != base and folder.is_relative_to(base):
        if folder.is_dir():
            return folder
        folder = folder.parent
    return base


def _candidates(base: Path, near: Path, *, follow_symlinks: bool) -> Iterator[str]:
    """Yield the adapters of `near`, then those below `base`, folder by folder, until enough entries were looked at."""
    folders = deque(dict.fromkeys([near, base]))
    seen = set(folders)
    entries = 0
    for _ in range(_MAX_FOLDERS):
        if not folders or entries >= _MAX_ENTRIES:
            return
        folder = folders.popleft()
        try:
            with os.scandir(folder) as found:
                for entry in islice(found, _MAX_ENTRIES - entries):
                    entries += 1
                    if entry.name.startswith("."):
                        continue
                    path = folder / entry.name
                    if entry.name.lower().endswith(SUFFIX):
                        yield path.relative_to(base).as_posix()
                    elif entry.is_dir(follow_symlinks=follow_symlinks) and path not in seen:
                        seen.add(path)
                        folders.append(path)
        except OSError:
            # The folder was deleted, belongs to another user, or holds a loop of links.
            continue


def _matchers(wanted: str) -> tuple[SequenceMatcher[str], SequenceMatcher[str]]:
    """Return matchers for the whole path and for its last part; a matcher prepares its second text once."""
    whole, last = _comparable(wanted)
    return SequenceMatcher(None, b=whole, autojunk=False), SequenceMatcher(None, b=last, autojunk=False)


def _compare_with(whole: SequenceMatcher[str], last: SequenceMatcher[str], name: str) -> None:
    path, part = _comparable(name)
    whole.set_seq1(path)
    last.set_seq1(part)


def _comparable(name: str) -> tuple[str, str]:
    # Without the suffix: all names share it, so that short ones would look alike.
    text = name.lower().removesuffix(SUFFIX)[:_MAX_CHARS]
    return text, PurePosixPath(text).name
