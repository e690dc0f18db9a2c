"""Describe an adapter file: its kind, its layers, the base that it was trained on, and why it is refused.

The description comes from the file's header and its alpha tensors; the other tensors are read only for the sha256.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shared.adapters.alphas import read_alphas
from shared.adapters.base_model import stated_base
from shared.adapters.foreign import is_text_encoder
from shared.adapters.header import read_open_header
from shared.adapters.header_json import Header
from shared.adapters.identity import identify
from shared.adapters.layout import AdapterLayout, check_fits_base, parse_layout
from shared.adapters.opened import open_adapter
from shared.adapters.peft_folder import read_peft_config
from shared.adapters.remote import RemoteAdapters
from shared.adapters.trainer import guess_trainer
from shared.adapters.validate import adapter_warnings, deciding_config
from shared.catalog import find_model
from shared.errors import RequestError
from shared.job import ADAPTER_PARTS, AdapterPart
from shared.sources.source import Source


@dataclass(frozen=True)
class BlockLayers:
    """How many layers of one type of block a file updates.

    Attributes:
        matched: number of `layers` that the base has; None without a base to compare with.
    """

    layers: int
    matched: int | None


@dataclass(frozen=True)
class Inspection:
    """The description of one file.

    Attributes:
        sha256: None for a remote file whose source states none.
        refused: why the file cannot be used, or None. For a refused file, the other fields contain all known facts.
        kind: kind of the updates, e.g. `lora`; None if the layout is not understood.
        ranks: distinct ranks, ascending.
        must_ignore: parts that a request must ignore to use the file, which is refused otherwise. The other fields
            then describe the rest of it.
        warnings: what a submit for the base would warn about.
        trainer: the tool that probably wrote the file; a guess.
        scale_range: lowest and highest scale of the layers; None if an alpha tensor is in a dtype that is not read.
        scale_sources: where the scales were found, as in `shared.adapters.strength.Source`.
        dtypes: number of tensors by dtype.
        blocks: layers by type of block: `double`, `single` and `other`.
        layers: number of layers that the file updates.
        matched: number of these layers that the base has; None without a base to compare with.
        unmatched: names of the layers that the base does not have.
        base_model_version: the base that the trainer wrote into the file, in its spelling.
        name: the trainer's name for the adapter.
        step: training step.
        trigger: the tag that the trainer counted most often.
    """

    sha256: str | None
    size_bytes: int
    refused: str | None
    must_ignore: tuple[AdapterPart, ...]
    warnings: tuple[str, ...]
    trainer: str | None
    kind: str | None
    ranks: tuple[int, ...]
    scale_range: tuple[float, float] | None
    scale_sources: tuple[str, ...]
    dtypes: Mapping[str, int]
    blocks: Mapping[str, BlockLayers]
    layers: int
    matched: int | None
    unmatched: tuple[str, ...]
    base_model_version: str | None
    name: str | None
    step: int | None
    trigger: str | None


def inspect_adapter(
    path: Path, *, max_bytes: int, layers: Mapping[str, tuple[int, int]] | None = None, model: str | None = None
) -> Inspection:
    """Describe a file and state whether the base can use it.

    Args:
        layers: (out, in) of the base's linear layers, to list which of them the file matches.
        model: id of the base; without `layers`, it is compared only with the base that the file itself names.

    Raises:
        AdapterNotFound, AdapterRefused: the file is not a readable safetensors file.
    """
    with open_adapter(path) as file:
        header = read_open_header(file, max_bytes=max_bytes)
        alphas = read_alphas(file, header)
        identity = identify(file)
    subject = _Subject(path.name, header, alphas, partial(read_peft_config, path), identity.sha256, identity.size_bytes)
    return _describe(subject, layers=layers, model=model)


def inspect_remote(
    source: Source,
    remote: RemoteAdapters,
    *,
    layers: Mapping[str, tuple[int, int]] | None = None,
    model: str | None = None,
) -> Inspection:
    """Describe a remote file; of its data, nothing is read, so alpha tensors are unknown. See `inspect_adapter`.

    Raises:
        AdapterNotFound, AdapterRefused, SourceUnavailable, AdapterCheckBusy: see `RemoteAdapters.read`.
    """
    found = remote.read(source)
    subject = _Subject(str(source), found.header, {}, lambda: found.config, found.sha256, found.size_bytes)
    return _describe(subject, layers=layers, model=model)


class _Subject(NamedTuple):
    """What is described, as it was read.

    Attributes:
        name: the file in messages.
        read_config: returns the text of PEFT's config next to the file, or None.
    """

    name: str
    header: Header
    alphas: Mapping[str, float]
    read_config: Callable[[], str | None]
    sha256: str | None
    size_bytes: int


def _describe(subject: _Subject, *, layers: Mapping[str, tuple[int, int]] | None, model: str | None) -> Inspection:
    header = subject.header
    judge = partial(_judge, subject, layers=layers, model=model)
    layout, refused, warnings = judge()
    must_ignore: tuple[AdapterPart, ...] = ()
    if refused is not None and any(map(is_text_encoder, header.tensors)):
        rest = judge(ignore=ADAPTER_PARTS)
        if rest.refused is None:
            layout, must_ignore = rest.layout, ADAPTER_PARTS
    named = frozenset[str]() if layout is None else layout.layers
    trained_on = stated_base(header.metadata)
    return Inspection(
        sha256=subject.sha256,
        size_bytes=subject.size_bytes,
        refused=refused,
        must_ignore=must_ignore,
        warnings=warnings,
        trainer=guess_trainer(header),
        kind=None if layout is None else layout.kind,
        ranks=() if layout is None else layout.ranks,
        scale_range=None if layout is None else layout.scale_range,
        scale_sources=() if layout is None else layout.scale_sources,
        dtypes=dict(Counter(tensor.dtype for tensor in header.tensors.values())),
        blocks=_by_block(named, layers),
        layers=len(named),
        matched=None if layers is None else len(named & layers.keys()),
        unmatched=() if layers is None else tuple(sorted(named - layers.keys())),
        base_model_version=None if trained_on is None else trained_on.spelling,
        name=header.metadata.get("ss_output_name") or header.metadata.get("name"),
        step=_step(header),
        trigger=_trigger(header),
    )


class _Judgement(NamedTuple):
    layout: AdapterLayout | None
    refused: str | None
    warnings: tuple[str, ...]


def _judge(
    subject: _Subject,
    *,
    layers: Mapping[str, tuple[int, int]] | None,
    model: str | None,
    ignore: Collection[AdapterPart] = (),
) -> _Judgement:
    """Return what a submit says about a file; without a model, whether its layout is understood."""
    layout = None
    try:
        config = subject.read_config()
        layout = parse_layout(subject.header, config=config, alphas=subject.alphas, ignore=ignore)
        deciding_config(layout, config)
        if model is None:
            return _Judgement(layout, None, ())
        check_fits_base(layout, layers, model=model)
        return _Judgement(layout, None, tuple(adapter_warnings(layout, find_model(model), path=subject.name)))
    except RequestError as error:
        return _Judgement(layout, str(error), ())


def _by_block(named: Iterable[str], layers: Container[str] | None) -> dict[str, BlockLayers]:
    kinds: dict[str, list[str]] = {kind: [] for kind in ("double", "single", "other")}
    for layer in named:
        kind, found, _ = layer.partition("_blocks.")
        kinds[kind if found else "other"].append(layer)
    return {
        kind: BlockLayers(len(group), None if layers is None else sum(layer in layers for layer in group))
        for kind, group in kinds.items()
    }


def _step(header: Header) -> int | None:
    step = _json(header, "training_info").get("step")
    return step if isinstance(step, int) else None


def _trigger(header: Header) -> str | None:
    """Return the tag that the trainer counted most often: the trigger word, if its captions held one."""
    # kohya's format: the tags' counts, by folder of the data set.
    counts: Counter[str] = Counter()
    for folder in _json(header, "ss_tag_frequency").values():
        if isinstance(folder, dict):
            counts.update({tag: count for tag, count in folder.items() if isinstance(count, int)})
    return counts.most_common(1)[0][0] if counts else None


def _json(header: Header, key: str) -> dict[str, Any]:
    # The text comes from strangers: deep nesting exhausts the stack.
    try:
        value = json.loads(header.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
