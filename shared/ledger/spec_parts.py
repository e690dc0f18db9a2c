"""Split the specs of a job's items into the values that all items share and the values that differ.

Redis stores each value that the items share once per job. A text has the values that people see (the parameters) on its
first line and those that only a render needs (the inputs) on its second, which is dropped when an item has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from shared.job import ItemSpec, SpecReport

_PARAMETERS = set(SpecReport.model_fields)
_INPUTS = ItemSpec.model_fields.keys() - _PARAMETERS

#: Fields of an item's result that other items of its job are likely to have too. They are the last ones: in the whole
#: form, both parts together are the result's JSON.
RESULT_COMMON: Final = {"adapters", "pipeline"}


def split_specs(specs: Sequence[ItemSpec]) -> list[str]:
    """Return the text of the values that all items share, then that of each item; only the first if no value differs.

    Joining the first text and an item's own gives the item's spec; see `join_texts`.
    """
    # By repr, so that 0.0 and -0.0 differ as they do in JSON.
    shared = {name for name in ItemSpec.model_fields if len({repr(getattr(spec, name)) for spec in specs}) == 1}
    own = ItemSpec.model_fields.keys() - shared
    return [_text(specs[0], shared), *(_text(spec, own) for spec in specs if own)]


def join_texts(texts: Iterable[str]) -> str:
    """Join JSON objects, one on each line of each text, into one."""
    # As text: parsing would cost more, and the reader validates the result anyway.
    members = (line[1:-1] for text in texts for line in text.split("\n"))
    return "{" + ",".join(filter(None, members)) + "}"


def first_line(text: str) -> str:
    """Return the parameters of a text."""
    return text.partition("\n")[0]


def _text(spec: ItemSpec, names: Iterable[str]) -> str:
    # JSON escapes line breaks in strings.
    parameters = spec.model_dump_json(include=_PARAMETERS.intersection(names))
    inputs = _INPUTS.intersection(names)
    return f"{parameters}\n{spec.model_dump_json(include=inputs)}" if inputs else parameters
