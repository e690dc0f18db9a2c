"""Read the texts of a job's items from its lists in Redis; `shared.ledger.spec_parts` describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from shared.job import State
from shared.ledger import keys
from shared.ledger.spec_parts import first_line, join_texts


@dataclass(frozen=True)
class JobTexts:
    """The texts of one job's items.

    Attributes:
        specs: the values that all items share, then those of each item; empty for a job in the whole form.
        outcomes: JSON of each result and error, by index.
    """

    specs: Sequence[str]
    outcomes: Mapping[int, str]

    @staticmethod
    def request(pipe: Any, job_id: str) -> None:
        """Add the commands that read a job's texts to a pipeline, after those that read its items."""
        # In this order: what an item or a line of `results` refers to was stored before it.
        pipe.lrange(keys.specs(job_id), 0, -1)
        JobTexts.request_outcomes(pipe, job_id)

    @staticmethod
    def request_outcomes(pipe: Any, job_id: str) -> None:
        """Add the commands that read only a job's results and errors."""
        pipe.lrange(keys.results(job_id), 0, -1)
        pipe.lrange(keys.result_parts(job_id), 0, -1)

    @classmethod
    def read(cls, replies: Sequence[Sequence[str]]) -> Self:
        """Build the texts from the replies to the commands of `request`."""
        specs, results, parts = replies
        lines = (line.split(" ", 2) for line in results)
        return cls(
            specs=specs,
            outcomes={int(index): join_texts([own, parts[int(position)]]) for index, position, own in lines},
        )

    def spec(self, index: int, item: Mapping[str, str]) -> str | None:
        """Return the JSON of an item's parameters, from whichever form it is stored in; None if unknown."""
        if "spec" in item or not self.specs:
            return item.get("spec")
        return join_texts(map(first_line, [self.specs[0], *self.specs[index + 1 : index + 2]]))

    def outcome(self, state: State, index: int, item: Mapping[str, str]) -> str | None:
        """Return the JSON of the result or the error with which an item reached its state; None if it has none."""
        field = {State.SUCCEEDED: "result", State.FAILED: "error"}.get(state)
        return None if field is None else item.get(field, self.outcomes.get(index))
