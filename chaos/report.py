"""Renders the outcomes of a run as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from chaos.trial import Outcome

_SHOWN = 4


def table(outcomes: Sequence[Outcome], *, seed: int) -> Table:
    """Return one row for each scenario; the row of a failed one shows its first violations."""
    made = Table("scenario", "verdict", "figures", "s", title=f"chaos, seed {seed}", show_lines=True)
    for outcome in outcomes:
        verdict = "as expected" if outcome.as_expected else "NOT AS EXPECTED"
        if outcome.must_fail:
            verdict += f": the checker finds {len(outcome.violations)} violations"
        lines = [f"{name}: {value}" for name, value in outcome.figures.items()]
        lines += [f"{v.invariant} {v.subject}: {v.detail}" for v in outcome.violations[:_SHOWN]]
        made.add_row(f"{outcome.name}\n{outcome.what}", verdict, "\n".join(lines), f"{outcome.wall_s:.0f}")
    return made
