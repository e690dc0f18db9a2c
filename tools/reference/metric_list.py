"""The tables of metrics: those that the API reads from the ledger, and those that processes count by themselves."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric

from api.metrics.collector import LedgerCollector
from shared.ledger import Ledger
from shared.metrics.definitions import COUNTERS, HISTOGRAMS
from tools.reference.markdown import code, table

_MOST_SLOTS = 1


def write_ledger_table(ledger: Ledger) -> str:
    """Return the table of what a scrape reads from the ledger, which may be empty."""
    reported = {f"flux2_{each.name}" for each in (*COUNTERS, *HISTOGRAMS)}
    found = LedgerCollector(ledger, most_slots=_MOST_SLOTS).collect()
    return _table([metric for metric in found if metric.name not in reported])


def write_reported_table(ledger: Ledger) -> str:
    """Return the table of what workers and API processes count."""
    reported = {f"flux2_{each.name}": each.labels for each in (*HISTOGRAMS, *COUNTERS)}
    metrics = {metric.name: metric for metric in LedgerCollector(ledger, most_slots=_MOST_SLOTS).collect()}
    return _table([metrics[name] for name in reported])


def _table(metrics: Iterable[Metric]) -> str:
    rows = ((code(_name(each)), each.type, ", ".join(_labels(each)), each.documentation) for each in metrics)
    return table(["metric", "type", "labels", "meaning"], rows)


def _name(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _labels(metric: Metric) -> tuple[str, ...]:
    # A family without samples shows its labels nowhere else.
    return tuple(getattr(metric, "_labelnames", ()))
