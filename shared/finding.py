"""What a check of `flux2 doctor` found, and how a check that fails itself becomes a finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from shared.errors import LedgerRefused, LedgerUnavailable, LedgerUnusable
from shared.ledger.connection import ACL_REMEDY, mapped_errors

_MAYBE_TLS = "look whether Redis runs, and whether the port needs TLS: then write rediss:// in FLUX2_REDIS_URL"
_MAYBE_CERTIFICATE = (
    "if Redis demands a certificate, set ssl_certfile and ssl_keyfile in FLUX2_REDIS_URL; "
    "otherwise read the log of Redis"
)

# The first one whose words an error has; each names the remedy.
_REDIS_REMEDIES = {
    ACL_REMEDY: ACL_REMEDY,
    "CERTIFICATE_VERIFY_FAILED": (
        "in FLUX2_REDIS_URL, set ssl_ca_certs to the file of Redis' CA and the host to the name in its certificate"
    ),
    "WRONG_VERSION_NUMBER": "this port of Redis has no TLS: name its tls-port, or write redis:// in FLUX2_REDIS_URL",
    # A Redis without TLS waits for the rest of the handshake, which looks to it like an unfinished command.
    "Timeout connecting": (
        "look whether Redis runs and a firewall drops packets; if this port has no TLS, write redis:// in "
        "FLUX2_REDIS_URL"
    ),
    # Redis closes a connection without TLS, and one without the certificate that it demands.
    "reset by peer": _MAYBE_TLS,
    "closed by server": _MAYBE_TLS,
    "EOF occurred": _MAYBE_CERTIFICATE,
    "certificate required": _MAYBE_CERTIFICATE,
    "max number of clients": "raise maxclients in redis.conf, or stop other clients of this Redis",
    "loading the dataset": "wait until Redis has read its data; its log shows how far it is",
    "Permission denied": "let this user write to the socket (unixsocketperm and unixsocketgroup in redis.conf)",
    "refuses the login": "correct the user and the password in FLUX2_REDIS_URL",
    "read only replica": "point FLUX2_REDIS_URL at the master",
    "maxmemory": "raise maxmemory, or lower FLUX2_QUEUE_RETENTION_S",
    "MISCONF": "check the disk of Redis and its log: is the disk full or broken?",
    "NOREPLICAS": "start the replicas of Redis, or lower its min-replicas-to-write",
    "": "start Redis, or correct FLUX2_REDIS_URL",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty if there is nothing to do."""

    name: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""


def run_check(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return a check's findings; an error that it does not report itself becomes one, and other checks may pass.

    Raises:
        LedgerUnavailable: Redis does not answer, or no call can succeed.
    """
    try:
        # Some checks read Redis without the ledger.
        with mapped_errors():
            return list(check())
    except LedgerUnusable:
        raise
    except LedgerRefused as error:
        return [Finding(name, "failed", *explain_redis(error))]
    except LedgerUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - the report of all checks is worth more than a traceback of one.
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(name, "failed", detail, "report this line as a bug of flux2-queue")]


def explain_redis(error: LedgerUnavailable) -> tuple[str, str]:
    """Return the fault of Redis and its remedy, each in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, LedgerUnusable):
        detail, _, remedy = text.partition("; ")
        return detail, remedy
    return text.removesuffix(f"; {ACL_REMEDY}"), next(
        remedy for words, remedy in _REDIS_REMEDIES.items() if words in text
    )
