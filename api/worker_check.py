"""Refuse jobs that none of the live workers of their model can run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from shared.errors import NoSuitableWorker
from shared.job import ENGINE_FEATURES, FEATURES, Engine, Feature, ItemSpec, pool
from shared.ledger.slot_kinds import SlotKind

# The request's field that requires a feature, and its value.
_FIELDS: Mapping[Feature, tuple[str, str]] = {"merged": ("adapter_mode", "merged")}
# What every worker of this version has, whatever its weights, and what those without it do.
_OF_THIS_VERSION: Mapping[Feature, str] = {"references": "renders no reference images", "sigmas": "takes no sigmas"}


def check_workers(
    spec: ItemSpec, kinds: Collection[SlotKind], *, features: Collection[Feature], may_be_missing: Callable[[], bool]
) -> list[str]:
    """Return a warning if the job waits for a worker that can run it; empty if a live one can.

    Args:
        spec: one of the job's items.
        kinds: those of all live workers.
        features: what the job requires of a worker beyond its model and engine.
        may_be_missing: returns whether live workers may be missing from `kinds`; then nothing is refused.

    Raises:
        NoSuitableWorker: live workers serve the model, and none of them can run the job.
    """
    serving = [kind for kind in kinds if kind.model == spec.model]
    newer = [name for name in _OF_THIS_VERSION if name in features]
    older = [name for name in FEATURES if name in features and name not in newer]
    able = [kind for kind in serving if pool(spec.model, spec.engine, older) in kind.pools]
    if any(set(newer) <= set(kind.features or ()) for kind in able):
        return []
    if able:
        lacking = [name for name in newer if not any(name in (kind.features or ()) for kind in able)] or newer
        # Not refused: an upgrade may replace these workers at any time.
        return [
            f"the live workers of {spec.model} are of an earlier version, which "
            f"{' and '.join(_OF_THIS_VERSION[name] for name in lacking)}; the job waits for one of this version"
        ]
    # An upgrade may replace a worker of an earlier version at any time by one that reports and has the feature.
    upgrading = any(kind.features is None and spec.engine in kind.engines for kind in serving)
    if serving and not upgrading and not may_be_missing():
        field, requirement = _missing_requirement(spec.engine, older, serving)
        offers = sorted({_describe(engine, kind) for kind in serving for engine in kind.engines})
        raise NoSuitableWorker(
            f"no live worker of {spec.model} offers {requirement}; they offer {', '.join(offers)}: change {field}, or "
            "start a worker that offers it",
            field=field,
        )
    return [f"no live worker offers {_requirements(spec.engine, older)} for {spec.model}; the job waits for one"]


def _missing_requirement(engine: Engine, features: Sequence[Feature], serving: Sequence[SlotKind]) -> tuple[str, str]:
    """Return the request's field that no worker can serve, and what it requires."""
    able = [kind for kind in serving if engine in kind.engines]
    if not able:
        return "engine", _requirements(engine, ())
    # Each feature may be there, but not all of them on one worker: the first is named.
    missing = next((name for name in features if not any(name in (kind.features or ()) for kind in able)), None)
    field, _ = _FIELDS[missing or features[0]]
    return field, _requirements(engine, features)


def _describe(engine: Engine, kind: SlotKind) -> str:
    features = {*(kind.features or ()), *ENGINE_FEATURES[engine]}
    return _requirements(engine, [name for name in _FIELDS if name in features])


def _requirements(engine: Engine, features: Sequence[Feature]) -> str:
    """Write an engine and features in the words of a request."""
    fields = [f"{field} {value!r}" for field, value in (_FIELDS[name] for name in features)]
    return " with ".join([f"the engine {engine!r}", *fields])
