"""Read the signature in an image file, and check that nothing in the file changed since it was signed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from shared.errors import MissingExtra, SignatureUnreadable
from shared.extras import require_extras

# Type of the box in which every format holds its manifests (C2PA specification, "Use of JUMBF").
_BOX_TYPE: Final = bytes.fromhex("6332706100110010800000aa00389b71")

_UNTRUSTED: Final = "signingCredential.untrusted"
_EXPIRED: Final = "signingCredential.expired"
# One byte of the image, of its parameters or of the manifest is another one than the signer saw.
_CHANGED: Final = frozenset(
    {"assertion.dataHash.mismatch", "assertion.hashedURI.mismatch", "claimSignature.mismatch", "claimSignature.invalid"}
)

#: In four states, nothing changed since the signature: `trusted`, by a certificate that leads to a trusted one;
#: `untrusted`, by another one; `valid`, if no trusted ones were given; `expired`, by a certificate that has ended, so
#: that nobody can tell whether it led to a trusted one. `broken`: something changed, or the signature breaks a rule.
#: `unchecked`: the library to check the signature is missing.
State = Literal["trusted", "untrusted", "valid", "expired", "broken", "unchecked"]


@dataclass(frozen=True)
class Signature:
    """What a signature says and whether it holds.

    Attributes:
        state: see `State`.
        signer: name in the certificate; empty if it cannot be read. Anybody can write any name into a certificate: only
            `trusted` says that the name was checked.
        organization: the organization in the certificate, or an empty text.
        algorithm: as in `FLUX2_PROVENANCE_ALGORITHM`.
        made_with: program that signed, with its version.
        problems: why the state is `broken` or `unchecked`.
    """

    state: State
    signer: str = ""
    organization: str = ""
    algorithm: str = ""
    made_with: str = ""
    problems: tuple[str, ...] = ()

    @property
    def is_broken(self) -> bool:
        return self.state == "broken"

    def describe(self) -> str:
        """Return one line for people."""
        by = f"by {self.signer}" if self.signer else "by an unknown signer"
        by += f" ({self.organization})" if self.organization not in ("", self.signer) else ""
        match self.state:
            case "trusted":
                return f"signed {by}, whose certificate is trusted; nothing changed since"
            case "untrusted":
                return f"signed {by}, says a certificate that leads to no trusted one; nothing changed since"
            case "valid":
                return f"signed {by}, says a certificate that was not checked; nothing changed since"
            case "expired":
                return f"signed {by}, says a certificate that has ended; nothing changed since"
            case "broken":
                return f"broken, was signed {by}: {'; '.join(self.problems)}"
            case "unchecked":
                return f"signed, but not checked: {'; '.join(self.problems)}"


def has_signature(data: bytes) -> bool:
    """Return whether an image file contains a C2PA manifest, without a check and without any library."""
    return _BOX_TYPE in data


def read_signature(data: bytes, *, trusted: str | None = None) -> Signature | None:
    """Return the signature of an image file, or None if it has none. No other host is asked.

    Args:
        trusted: certificates of authorities in PEM; None for no check of the signer.
    """
    try:
        import c2pa
    except ModuleNotFoundError:
        missing = MissingExtra("c2pa", extra="provenance")
        return Signature("unchecked", problems=(str(missing),)) if has_signature(data) else None
    try:
        with (
            c2pa.Context.from_dict(_reader_settings(trusted)) as context,
            c2pa.Reader(None, io.BytesIO(data), context=context) as reader,
        ):
            return _describe(json.loads(reader.json()), trusted=trusted is not None)
    except c2pa.C2paError as error:
        # Files without a signature, and those that are no images, are errors too.
        return Signature("broken", problems=(" ".join(str(error).split()),)) if has_signature(data) else None


def is_accepted(signature: Signature | None, *, trusted_only: bool) -> bool:
    """Return whether a file may be used: unless only trusted signers count, one without a signature may be, too."""
    if trusted_only:
        return signature is not None and signature.state == "trusted"
    return signature is None or not signature.is_broken


def read_trusted(path: Path) -> str:
    """Return the certificates of authorities in a PEM file, to pass to `read_signature`.

    Raises:
        MissingExtra: the libraries that check signatures are not installed.
        SignatureUnreadable: the file cannot be read, holds none, or one of them is damaged.
    """
    require_extras({"c2pa": "provenance", "cryptography": "provenance"})
    from cryptography import x509

    data = read_file(path)
    try:
        # C2PA's reader reports a damaged one as if the image's signature were broken.
        x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise SignatureUnreadable(f"{path} holds no sound certificate in PEM; name the file of an authority") from error
    return data.decode(errors="replace")


def read_file(path: Path) -> bytes:
    """Return the bytes of a file that a person named; raises `SignatureUnreadable`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureUnreadable(f"{path} cannot be read: {error.strerror or error}; name another file") from error


def _reader_settings(trusted: str | None) -> dict[str, Any]:
    return {
        "version": 1,
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
        **({"trust": {"user_anchors": trusted}} if trusted else {}),
    }


def _describe(report: Mapping[str, Any], *, trusted: bool) -> Signature:
    manifest = report["manifests"][report["active_manifest"]]
    signed, made_with = manifest.get("signature_info") or {}, (manifest.get("claim_generator_info") or [{}])[0]
    state, problems = _judge(report, trusted=trusted)
    return Signature(
        state,
        signer=signed.get("common_name") or "",
        organization=signed.get("issuer") or "",
        algorithm=str(signed.get("alg") or "").lower(),
        made_with=f"{made_with.get('name', '')} {made_with.get('version', '')}".strip(),
        problems=problems,
    )


def _judge(report: Mapping[str, Any], *, trusted: bool) -> tuple[State, tuple[str, ...]]:
    # One of Invalid, Valid and Trusted. It also covers the manifests of images that the file names as its parts.
    verdict = report.get("validation_state")
    failures = ((report.get("validation_results") or {}).get("activeManifest") or {}).get("failure") or []
    faults = {failure["code"]: failure.get("explanation", "") for failure in failures}
    serious = {code: text for code, text in faults.items() if code not in (_UNTRUSTED, _EXPIRED)}
    if _CHANGED & serious.keys():
        return "broken", ("the file was changed after it was signed",)
    if serious:
        return "broken", tuple(f"{text} ({code})" for code, text in serious.items())
    if _EXPIRED in faults:
        return "expired", ()
    if verdict not in ("Valid", "Trusted"):
        return "broken", ("a part of it does not hold",)
    if not trusted:
        return "valid", ()
    return ("trusted" if verdict == "Trusted" else "untrusted"), ()
