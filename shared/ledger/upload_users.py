"""Count the jobs that still need an uploaded file, from the specs of the items that have not ended.

No index of it is kept: a process of an earlier version would not maintain it, and only a deletion asks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from shared.catalog import POOLS
from shared.errors import AdapterRefused
from shared.ledger import keys
from shared.ledger.connection import Client
from shared.ledger.spec_parts import join_texts
from shared.sources.source import UploadedFile, parse_source

# Redis serves nobody else during one command; those of a pipeline are short.
_STEP = 500


def count_users(client: Client, name: str, digests: Collection[str], *, tenant: str | None = None) -> int:
    """Count the jobs with an item that is queued or running and needs an upload.

    Args:
        digests: sha256 of the versions of the upload.
        tenant: whose upload it is.
    """
    upload = UploadedFile(name, tenant=tenant)
    # One item of each job says it: all of them have the same adapters.
    open_items = list({item_id.rpartition(":")[0]: item_id for item_id in _open_items(client)}.values())
    count = 0
    for start in range(0, len(open_items), _STEP):
        for spec in _read_specs(client, open_items[start : start + _STEP]):
            # Parsing all specs would take most of the time.
            if f'"{upload}' in spec and _needs(json.loads(spec), upload, digests):
                count += 1
    return count


def _open_items(client: Client) -> Iterator[str]:
    """Yield the ids of the items that are queued or running."""
    # Leases first and last: an item that moves in between is in one of the three readings.
    yield from client.zrange(keys.LEASES, 0, -1)
    for pool in POOLS:
        yield from _queued_items(client, keys.pending(pool))
    yield from client.zrange(keys.LEASES, 0, -1)


def _queued_items(client: Client, queue: str) -> Iterator[str]:
    lowest = "-inf"
    while found := client.zrangebyscore(queue, lowest, "+inf", start=0, num=_STEP, withscores=True):
        yield from (item_id for item_id, _ in found)
        lowest = f"({found[-1][1]:.0f}"


def _read_specs(client: Client, item_ids: Sequence[str]) -> Iterator[str]:
    """Yield the specs of items in whichever form they are stored; nothing for an item that has ended since."""
    with client.pipeline(transaction=False) as pipe:
        for item_id in item_ids:
            job_id, _, index = item_id.rpartition(":")
            pipe.hget(keys.item(item_id), "spec")
            pipe.lindex(keys.specs(job_id), 0)
            pipe.lindex(keys.specs(job_id), int(index) + 1)
        replies = pipe.execute()
    for position in range(0, len(replies), 3):
        whole, *parts = replies[position : position + 3]
        texts = [text for text in parts if text]
        if whole or texts:
            yield whole or join_texts(texts)


def _needs(spec: dict[str, Any], upload: UploadedFile, digests: Collection[str]) -> bool:
    for adapter in spec.get("adapters", ()):
        try:
            source = parse_source(adapter["path"], may_hold_secret=True)
        except AdapterRefused:  # a later version knows more kinds
            continue
        if not isinstance(source, UploadedFile) or (source.name, source.tenant) != (upload.name, upload.tenant):
            continue
        if (source.sha256 or adapter["sha256"]) in digests:
            return True
    return False
