"""Which scenarios there are, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.storm import storm
from chaos.trial import Lab, Outcome


def run(lab: Lab, *, jobs: int, only: Sequence[str]) -> Iterator[Outcome]:
    yield storm(lab, jobs=jobs)
