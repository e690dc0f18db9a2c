"""Read the certificate and the private key with which images are signed, and check that they belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from shared.errors import SignerUnusable
from shared.settings import ProvenanceSettings

_CERTIFICATE = "FLUX2_PROVENANCE_CERTIFICATE"
_KEY = "FLUX2_PROVENANCE_KEY"

# C2PA fixes the curve of each ECDSA algorithm.
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_RSA = ("ps256", "ps384", "ps512")


@dataclass(frozen=True)
class SigningCredential:
    """A certificate and its private key.

    Attributes:
        chain: certificates in PEM, that of the signer first.
        key: the private key in PEM (PKCS#8).
        algorithm: as in `FLUX2_PROVENANCE_ALGORITHM`.
        name: the signer, as the certificate states it.
        ends: when the certificate ends; from then on, nothing can be signed with it.
    """

    chain: str
    key: str = field(repr=False)
    algorithm: str
    name: str
    ends: datetime


def read_credential(settings: ProvenanceSettings) -> SigningCredential:
    """Read both files of the settings, which must name them.

    Raises:
        SignerUnusable: a file cannot be read or holds something else, the key belongs to another certificate or does
            not fit the algorithm, or the certificate is not valid now.
    """
    chain = _read_chain(_read(settings.certificate, _CERTIFICATE), settings.certificate)
    signer = chain[0]
    key = _read_key(_read(settings.key, _KEY), settings.key)
    if _public_bytes(key) != signer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise SignerUnusable(
            f"the key in {settings.key} is not that of the first certificate in {settings.certificate}; name the files "
            f"of one pair in {_CERTIFICATE} and {_KEY}, with the signer's certificate before those of its issuers"
        )
    _check_dates(signer, settings.certificate)
    return SigningCredential(
        chain="".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain),
        # c2pa-python reads this form alone; OpenSSL also writes others.
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        algorithm=_choose_algorithm(key, settings),
        name=_name(signer),
        ends=signer.not_valid_after_utc,
    )


def _read(path: Path | None, variable: str) -> bytes:
    if path is None:
        raise SignerUnusable(f"{variable} is not set; set it to a PEM file to sign images")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignerUnusable(
            f"{path} cannot be read: {error.strerror}; correct {variable}, or let this user read the file"
        ) from error


def _read_chain(data: bytes, path: Path | None) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignerUnusable(
            f"{path} holds no sound certificate in PEM; name a file with BEGIN CERTIFICATE in {_CERTIFICATE}"
        ) from error


def _read_key(data: bytes, path: Path | None) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as error:
        raise SignerUnusable(
            f"the key in {path} has a passphrase, and workers start without anybody who could type it; remove it: "
            f"openssl pkey -in {path} -out KEY, and protect the file by its permissions"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignerUnusable(
            f"{path} holds no sound private key in PEM; name a file with BEGIN PRIVATE KEY in {_KEY}"
        ) from error


def _public_bytes(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_dates(signer: x509.Certificate, path: Path | None) -> None:
    now = datetime.now(UTC)
    if now >= signer.not_valid_after_utc:
        raise SignerUnusable(
            f"the certificate in {path} ended on {signer.not_valid_after_utc:%Y-%m-%d}; get a new one, or unset "
            f"{_CERTIFICATE} and {_KEY} to store images without signatures"
        )
    if now < signer.not_valid_before_utc:
        raise SignerUnusable(
            f"the certificate in {path} begins on {signer.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; wait until then, "
            "or correct the clock of this host"
        )


def _choose_algorithm(key: PrivateKeyTypes, settings: ProvenanceSettings) -> str:
    match key:
        case ec.EllipticCurvePrivateKey():
            fitting: tuple[str, ...] = tuple(filter(None, [_CURVES.get(key.curve.name)]))
        case ed25519.Ed25519PrivateKey():
            fitting = ("ed25519",)
        case rsa.RSAPrivateKey():
            fitting = _RSA
        case _:
            fitting = ()
    if not fitting:
        raise SignerUnusable(
            f"C2PA has no algorithm for the key in {settings.key}; use one of P-256, P-384, P-521, Ed25519 or RSA"
        )
    if settings.algorithm not in (None, *fitting):
        raise SignerUnusable(
            f"the key in {settings.key} cannot sign with {settings.algorithm}; set FLUX2_PROVENANCE_ALGORITHM to "
            f"{' or '.join(fitting)}, or unset it"
        )
    return settings.algorithm or fitting[0]


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()
