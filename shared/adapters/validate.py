"""Refuse unusable adapters when a job is submitted, from their headers alone.

The worker finds the faults that only the tensors' values show, such as a non-finite number, and fails the item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

from shared.adapters.alphas import read_alphas
from shared.adapters.base_model import stated_base
from shared.adapters.header import read_open_header
from shared.adapters.header_json import Header
from shared.adapters.identity import identify
from shared.adapters.layout import AdapterLayout, check_fits_base, parse_layout
from shared.adapters.locate import locate_adapter
from shared.adapters.opened import open_adapter
from shared.adapters.peft_folder import compact_config, read_peft_config
from shared.adapters.remote import RemoteAdapters, call_deadline
from shared.adapters.strength import CONFIG_NAME, states_alpha
from shared.catalog import Model
from shared.errors import AdapterRefused, RequestError
from shared.job import AdapterPart, AdapterRef
from shared.request import LoraItem
from shared.settings import AdaptersSettings
from shared.sources.source import LocalFile, parse_source


class ValidAdapter(NamedTuple):
    """An adapter that a job can use.

    Attributes:
        ref: names the file, with the sha256 of its bytes.
        warnings: what may surprise about it, as sentences.
    """

    ref: AdapterRef
    warnings: tuple[str, ...] = ()


def validate_adapters(
    loras: Sequence[LoraItem],
    model: Model,
    *,
    layers: Mapping[str, tuple[int, int]] | None,
    settings: AdaptersSettings,
    remote: RemoteAdapters | None = None,
    deadline: float | None = None,
) -> list[ValidAdapter]:
    """Return each adapter of a request with what the job's caller should know about it; see `validate_adapter`.

    Raises:
        AdapterNotFound, AdapterRefused: `field` names the entry of `loras`, the message the key at fault.
        SourceUnavailable, AdapterCheckBusy: see `RemoteAdapters.read`.
    """
    deadline = call_deadline() if deadline is None else deadline
    adapters = []
    for index, lora in enumerate(loras):
        with naming_lora(index):
            adapters.append(
                validate_adapter(lora, model, layers=layers, settings=settings, remote=remote, deadline=deadline)
            )
    return adapters


@contextmanager
def naming_lora(index: int) -> Iterator[None]:
    """Name an entry of `loras` in errors about its file."""
    try:
        yield
    except RequestError as error:
        error.field = f"loras[{index}].path"
        raise


def validate_adapter(
    lora: LoraItem,
    model: Model,
    *,
    layers: Mapping[str, tuple[int, int]] | None,
    settings: AdaptersSettings,
    remote: RemoteAdapters | None,
    deadline: float,
) -> ValidAdapter:
    """Return one adapter of a request.

    Args:
        layers: (out, in) of the base model's linear layers; None checks the file without comparing layers.
        remote: reads files of remote sources; None refuses them.
        deadline: time on the monotonic clock until which remote sources may answer.

    Raises:
        AdapterNotFound, AdapterRefused: the message names the key at fault.
        SourceUnavailable, AdapterCheckBusy: see `RemoteAdapters.read`.
    """
    found = _find(lora, settings, remote, deadline)
    layout = parse_layout(found.header, config=found.config, alphas=found.alphas, ignore=lora.ignored_parts)
    check_fits_base(layout, layers, model=model.id)
    ref = found.ref.model_copy(update={"peft_config": deciding_config(layout, found.config)})
    warnings = adapter_warnings(layout, model, path=ref.path, ignore=frozenset(ref.ignore))
    return ValidAdapter(ref, tuple(warnings))


class _Found(NamedTuple):
    """What one file says, before its layout is understood.

    Attributes:
        ref: names the file; how it is read is still missing.
        config: text of PEFT's config next to the file, or None.
        alphas: values of the alpha tensors that were read.
    """

    ref: AdapterRef
    header: Header
    config: str | None
    alphas: Mapping[str, float] = MappingProxyType({})


def _find(lora: LoraItem, settings: AdaptersSettings, remote: RemoteAdapters | None, deadline: float) -> _Found:
    source = parse_source(lora.path)
    if isinstance(source, LocalFile):
        return _find_local(lora, settings)
    if remote is None:
        raise AdapterRefused(
            f"{source} is a link, and only files under the adapter root are used here; name one of those"
        )
    found = remote.read(source, sha256=lora.sha256, deadline=deadline)
    ref = AdapterRef(
        path=str(source),
        sha256=found.sha256 or "",
        size_bytes=found.size_bytes,
        multiplier=lora.multiplier,
        pin=found.pin,
        ignore=lora.ignored_parts,
    )
    # Its alpha tensors are not read: each would cost a request. The worker compares them with the header.
    return _Found(ref, found.header, found.config)


def _find_local(lora: LoraItem, settings: AdaptersSettings) -> _Found:
    path = locate_adapter(lora.path, root=settings.root, allow_symlinks=settings.allow_symlinks)
    with open_adapter(path) as file:
        header = read_open_header(file, max_bytes=settings.max_bytes)
        config = read_peft_config(path)
        # Alpha tensors alone contradict nothing.
        alphas = read_alphas(file, header) if states_alpha(header.metadata, config) else {}
        identity = identify(file)
    if lora.sha256 not in (None, identity.sha256):
        raise AdapterRefused(
            f"{lora.path[:200]!r} has the sha256 {identity.sha256}, and the request states {lora.sha256}; "
            "correct one of them"
        )
    ref = AdapterRef(
        # Relative, because a worker's adapter root may be mounted elsewhere.
        path=str(path.relative_to(settings.root.resolve())),
        sha256=identity.sha256,
        size_bytes=identity.size_bytes,
        multiplier=lora.multiplier,
        ignore=lora.ignored_parts,
    )
    return _Found(ref, header, config, alphas)


def deciding_config(layout: AdapterLayout, config: str | None) -> str:
    """Return the part of PEFT's config that a job must keep; empty if the file alone gives the same scales.

    Raises:
        AdapterRefused: see `compact_config`.
    """
    decides = any(
        # An alpha tensor that was not read: the worker reads it, and compares.
        update.strength.scale is None or (update.strength.source == CONFIG_NAME and update.strength.scale != 1)
        for update in layout.updates
    )
    return compact_config(config) if config is not None and decides else ""


def adapter_warnings(
    layout: AdapterLayout, model: Model, *, path: str, ignore: Set[AdapterPart] = frozenset()
) -> Iterator[str]:
    """Yield what the caller of a job should know about an adapter that fits its model.

    Args:
        ignore: parts of the file that the caller leaves out.
    """
    if layout.ignored:
        count = layout.ignored["text_encoder"]
        yield (
            f"{path}: {count} text-encoder layer{'s are' if count > 1 else ' is'} left out, as its ignore says; images "
            "may differ from those of a program that applies them"
        )
    elif ignore:
        yield f"{path} has no text-encoder layers, so its ignore has no effect; leave it out"
    trained_on = stated_base(layout.metadata)
    # Of the adapters that fit a distilled model, the others were trained on the model from which it was distilled.
    if trained_on is not None and model.distilled_from and model.id not in trained_on.models:
        yield (
            f"{path} was trained on {trained_on.spelling} and runs on {model.id}, where its effect may be weaker or "
            f"stronger; request {model.distilled_from} for images as in training"
        )
