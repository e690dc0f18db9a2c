"""Check for `flux2 doctor` that workers can sign images."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from shared.errors import MissingExtra, SignerUnusable
from shared.finding import Finding
from shared.plurals import counted
from shared.provenance.signer import open_signer
from shared.settings import ProvenanceSettings

_WARNING_DAYS: Final = 30


def check_provenance(settings: ProvenanceSettings) -> Iterator[Finding]:
    """Report who signs images and until when; nothing if they are not signed."""
    try:
        signer = open_signer(settings)
    except MissingExtra as error:
        # Only workers need it, and this host may have none.
        detail, _, remedy = str(error).partition(": ")
        yield Finding("provenance", "warning", f"a worker on this host cannot sign: {detail}", remedy)
        return
    except SignerUnusable as error:
        detail, _, remedy = str(error).partition("; ")
        yield Finding("provenance", "failed", detail, remedy)
        return
    if signer is None:
        return
    credential = signer.credential
    days = (credential.ends - datetime.now(UTC)).days
    detail = f"images are signed by {credential.name} with {credential.algorithm}, until {credential.ends:%Y-%m-%d}"
    if days < _WARNING_DAYS:
        yield Finding(
            "provenance",
            "warning",
            f"{detail}: {counted(days, 'day', 'days')} from now",
            "get a new certificate and restart the workers; without one, images are then stored without signatures",
        )
    else:
        yield Finding("provenance", "ok", detail)
