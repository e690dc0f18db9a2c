"""The live API that is fuzzed: a process of its own on real Redis and S3, with an adapter and a key for each caller."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuzz.samples import ADAPTER_PATH, make_adapter
from shared.keys.record import ROLES, KeyRecord, Role
from shared.keys.secret import KeyText, SecretHash
from shared.ledger import Ledger
from shared.local.child import ChildProcess
from shared.local.ports import LOOPBACK, pick_free_port
from shared.local.redis_server import RedisServer
from shared.local.s3_server import S3Server
from shared.settings import QueueSettings

#: The callers, and the roles of their keys; the last two have no key, and one that nobody made.
CALLERS: Final[Mapping[str, frozenset[Role] | None]] = {
    "admin": frozenset(ROLES),
    "submit": frozenset({"submit"}),
    "read": frozenset({"read"}),
    "no key": None,
    "wrong key": None,
}

_START_S: Final = 60.0


@dataclass(frozen=True)
class Target:
    """A running API.

    Attributes:
        headers: by caller, what it sends with each call.
    """

    url: str
    headers: Mapping[str, Mapping[str, str]]
    log: Path


@contextmanager
def serve(folder: Path) -> Iterator[Target]:
    """Run the API as a context manager; everything that it stores is under a folder."""
    adapter = folder / "adapters" / ADAPTER_PATH
    adapter.parent.mkdir(parents=True, exist_ok=True)
    adapter.write_bytes(make_adapter(0))
    port = pick_free_port()
    url = f"http://{LOOPBACK}:{port}"
    with RedisServer(folder) as redis, S3Server(folder) as s3:
        environment = {
            **os.environ,
            **redis.environment(),
            **s3.environment(),
            "FLUX2_API_PORT": str(port),
            "FLUX2_ADAPTERS_ROOT": str(folder / "adapters"),
            # Webhooks of accepted jobs would be sent nowhere, and no worker ends a job: the courier has no work.
            "FLUX2_WEBHOOK_SECRET": "whsec_" + "A" * 43 + "=",
            "FLUX2_LOG_FORMAT": "json",
        }
        headers = make_keys(Ledger.connect(redis.url, QueueSettings(), timeout_s=5))
        child = ChildProcess("api", [sys.executable, "-m", "shared.cli", "api"], folder=folder, environment=environment)
        child.start(lambda: _is_ready(url), timeout_s=_START_S)
        try:
            yield Target(url=url, headers=headers, log=child.log)
        finally:
            child.stop()


def make_keys(ledger: Ledger) -> dict[str, dict[str, str]]:
    """Make the key of each caller and return the headers that send it."""
    headers: dict[str, dict[str, str]] = {}
    for caller, roles in CALLERS.items():
        text = KeyText.make()
        if roles is not None:
            ledger.api_keys.add(
                KeyRecord(
                    key_id=text.key_id,
                    name=caller,
                    tenant="default",
                    roles=roles,
                    secret=SecretHash.of(text.secret),
                    created_ms=ledger.now_ms(),
                )
            )
        headers[caller] = {} if caller == "no key" else {"Authorization": f"Bearer {text}"}
    return headers


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
