"""Make a certificate for trials and for use among people who know each other: no authority has checked its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import OutputRefused
from shared.outputs import make_output_folder

_AUTHORITY: Final = "authority.pem"
_CERTIFICATE: Final = "certificate.pem"
_KEY: Final = "key.pem"
# Clocks of other hosts may be late.
_BEFORE: Final = timedelta(hours=1)


@dataclass(frozen=True)
class LocalCertificate:
    """The files of a certificate.

    Attributes:
        authority: certificate of the issuer, for those who check signatures.
        certificate: certificate of the signer, for `FLUX2_PROVENANCE_CERTIFICATE`.
        key: its private key, which only the owner can read, for `FLUX2_PROVENANCE_KEY`.
    """

    authority: Path
    certificate: Path
    key: Path


def write_local_certificate(folder: Path, *, name: str, days: int) -> LocalCertificate:
    """Make an authority, a certificate that it issues, and their keys; the authority's key is not kept.

    Args:
        folder: created if it is missing; no file in it is replaced.
        name: name of the signer, and with " authority" of the issuer: 1 to 50 bytes in UTF-8.
        days: days from now to the end of both.

    Raises:
        OutputRefused: a file exists already, or cannot be written.
    """
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer, ends = f"{name} authority", datetime.now(UTC) + timedelta(days=days)
    authority = _certificate(issuer, authority_key, issuer=issuer, issuer_key=authority_key, ends=ends)
    certificate = _certificate(name, key, issuer=issuer, issuer_key=authority_key, ends=ends)
    files = LocalCertificate(folder / _AUTHORITY, folder / _CERTIFICATE, folder / _KEY)
    make_output_folder(folder)
    # Before anything is written: a key without its certificate would be in the way of the next attempt.
    for path in (files.key, files.certificate, files.authority):
        if path.exists():
            raise _exists(path)
    _write_new(files.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    _write_new(files.certificate, certificate.public_bytes(Encoding.PEM), mode=0o644)
    _write_new(files.authority, authority.public_bytes(Encoding.PEM), mode=0o644)
    return files


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    ends: datetime,
) -> x509.Certificate:
    """Return a certificate with the extensions that C2PA demands; its own issuer becomes an authority."""
    is_authority = key is issuer_key
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BEFORE)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_authority:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    # Readers of C2PA show the organization as the issuer of a signature.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, common_name),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise OutputRefused(f"cannot write {path}: {error.strerror}; choose another folder") from error


def _exists(path: Path) -> OutputRefused:
    return OutputRefused(f"{path} exists; choose another folder, or remove the file if nothing needs it")
