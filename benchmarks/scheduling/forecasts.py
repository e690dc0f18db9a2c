"""Compare what the ledger says about jobs while they wait with what happened to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scheduling.history import History
from benchmarks.scheduling.simulation import Simulation
from shared.ledger import JobView

# Below this the error of a forecast says nothing: an item ends within the granularity of progress.
_SHORTEST_S = 1.0


@dataclass(frozen=True)
class Forecast:
    """One answer of the ledger about a job that had not ended.

    Attributes:
        eta_s: seconds to its end, as the ledger estimated them; None if it gave no estimate.
        range_s: the low and the high estimate.
        truth_s: seconds to its end, as it happened.
    """

    eta_s: float | None
    range_s: tuple[float, float] | None
    truth_s: float

    @property
    def error(self) -> float | None:
        """The distance of the estimate from the truth, relative to the truth; None without an estimate."""
        if self.eta_s is None:
            return None
        return abs(self.eta_s - self.truth_s) / max(self.truth_s, _SHORTEST_S)

    @property
    def is_in_range(self) -> bool:
        """Whether the job ended between the low and the high estimate, to the shortest time that counts."""
        if self.range_s is None:
            return False
        low_s, high_s = self.range_s
        return low_s - _SHORTEST_S <= self.truth_s <= high_s + _SHORTEST_S


class ForecastRecorder:
    """An observer that asks for the outlook of some unfinished jobs again and again.

    Args:
        every_s: virtual seconds between two rounds.
        jobs: how many jobs each round asks about, chosen at random.
    """

    def __init__(self, *, every_s: float, jobs: int, seed: int) -> None:
        self._every_s = every_s
        self._jobs = jobs
        self._chance = random.Random(seed)
        self._answers: list[tuple[float, JobView]] = []

    def attach(self, simulation: Simulation) -> None:
        """See `Observer`."""

        def ask() -> None:
            open_jobs = simulation.history.open_jobs()
            for job_id in self._chance.sample(open_jobs, min(self._jobs, len(open_jobs))):
                job = simulation.ledger.job(job_id)
                assert job is not None
                self._answers.append((simulation.timeline.now_s(), job))
            simulation.timeline.after(self._every_s, ask)

        simulation.timeline.after(self._every_s, ask)

    def forecasts(self, history: History) -> Sequence[Forecast]:
        """Return the answers with what happened; call it after the run."""
        forecasts = []
        for asked_s, job in self._answers:
            end_s = history.job_end_s(job.job_id)
            assert end_s is not None
            forecasts.append(Forecast(job.eta_s, job.eta_range_s, truth_s=end_s - asked_s))
        return forecasts
