"""Refuse jobs that none of the live workers of their model can run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from shared.errors import NoSuitableWorker
from shared.job import ENGINE_FEATURES, Engine, Feature, ItemSpec
from shared.ledger.slot_kinds import SlotKind

# The request's field that requires a feature, and its value.
_FIELDS: Mapping[Feature, tuple[str, str]] = {"merged": ("adapter_mode", "merged")}
# Every worker of this version has it, whatever its weights.
_REFERENCES: Feature = "references"


def check_workers(
    spec: ItemSpec, kinds: Collection[SlotKind], *, has_references: bool = False, may_be_missing: Callable[[], bool]
) -> list[str]:
    """Return a warning if the job waits for a worker that can run it; empty if a live one can.

    Args:
        spec: one of the job's items, without references.
        kinds: those of all live workers.
        has_references: whether an item of the job has reference images.
        may_be_missing: returns whether live workers may be missing from `kinds`; then nothing is refused.

    Raises:
        NoSuitableWorker: live workers serve the model, and none of them can run the job.
    """
    serving = [kind for kind in kinds if kind.model == spec.model]
    able = [kind for kind in serving if spec.pool in kind.pools]
    if any(not has_references or _REFERENCES in (kind.features or ()) for kind in able):
        return []
    if able:
        # Not refused: an upgrade may replace these workers at any time.
        return [
            f"the live workers of {spec.model} are of an earlier version, which renders no reference images; the job "
            "waits for one of this version"
        ]
    # An upgrade may replace a worker of an earlier version at any time by one that reports and has the feature.
    upgrading = any(kind.features is None and spec.engine in kind.engines for kind in serving)
    if serving and not upgrading and not may_be_missing():
        field, requirement = _missing_requirement(spec, serving)
        offers = sorted({_describe(engine, kind) for kind in serving for engine in kind.engines})
        raise NoSuitableWorker(
            f"no live worker of {spec.model} offers {requirement}; they offer {', '.join(offers)}: change {field}, or "
            "start a worker that offers it",
            field=field,
        )
    return [
        f"no live worker offers {_requirements(spec.engine, spec.features)} for {spec.model}; the job waits for one"
    ]


def _missing_requirement(spec: ItemSpec, serving: Sequence[SlotKind]) -> tuple[str, str]:
    """Return the request's field that no worker can serve, and what it requires."""
    if not any(spec.engine in kind.engines for kind in serving):
        return "engine", _requirements(spec.engine, ())
    # Each feature may be there, but not all of them on one worker: the first is named.
    able = [kind for kind in serving if spec.engine in kind.engines]
    missing = next((name for name in spec.features if not any(name in (kind.features or ()) for kind in able)), None)
    field, _ = _FIELDS[missing or spec.features[0]]
    return field, _requirements(spec.engine, spec.features)


def _describe(engine: Engine, kind: SlotKind) -> str:
    features = {*(kind.features or ()), *ENGINE_FEATURES[engine]}
    return _requirements(engine, [name for name in _FIELDS if name in features])


def _requirements(engine: Engine, features: Sequence[Feature]) -> str:
    """Write an engine and features in the words of a request."""
    fields = [f"{field} {value!r}" for field, value in (_FIELDS[name] for name in features)]
    return " with ".join([f"the engine {engine!r}", *fields])
