"""Complete the TLS options of a Redis URL, and check the files that they name before a connection needs them."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.connection import SSLConnection

#: Options of a `rediss://` URL: all that this redis-py has, except OCSP, which cannot be switched on by text.
TLS_OPTIONS = frozenset(
    name
    for name in inspect.signature(SSLConnection.__init__).parameters
    if name.startswith("ssl_") and "ocsp" not in name
)

_CERT_REQS = ("required", "optional", "none")
_VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def complete_tls_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of redis-py's TLS connection, with what it verifies stated in full.

    kombu connects without TLS if it gets no argument, and redis-py before 6.0 does not check host names by default.

    Raises:
        ValueError: an option has a value that cannot be used; the message names the option, and never `ssl_password`.
    """
    cert_reqs = _read_cert_reqs(options.get("ssl_cert_reqs", "required"))
    completed = {
        **options,
        "ssl_cert_reqs": cert_reqs,
        # Without a certificate to verify, there is no name to check; Python's ssl module refuses the combination.
        "ssl_check_hostname": cert_reqs != "none" and options.get("ssl_check_hostname", True),
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _check_authorities(context, completed)
    _check_client_certificate(context, completed)
    _check_protocol(context, completed)
    return completed


def _read_cert_reqs(value: str) -> str:
    # Celery's documentation spells them CERT_REQUIRED, CERT_OPTIONAL and CERT_NONE.
    name = value.lower().removeprefix("cert_")
    if name not in _CERT_REQS:
        raise ValueError(f"ssl_cert_reqs={value!r} is unknown; write one of {', '.join(_CERT_REQS)}")
    return name


def _check_authorities(context: ssl.SSLContext, options: Mapping[str, Any]) -> None:
    folder, file, text = (options.get(name) for name in ("ssl_ca_path", "ssl_ca_certs", "ssl_ca_data"))
    if folder and not Path(folder).is_dir():
        raise ValueError(f"ssl_ca_path={folder} is not a folder; name one that holds certificates")
    for name, argument, value in ((f"ssl_ca_certs={file}", "cafile", file), ("ssl_ca_data", "cadata", text)):
        if value is None:
            continue
        try:
            context.load_verify_locations(**{argument: value})
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} gives no certificates: {error}; it needs readable PEM text") from error


def _check_client_certificate(context: ssl.SSLContext, options: Mapping[str, Any]) -> None:
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if key and not certificate:
        raise ValueError("ssl_keyfile needs ssl_certfile, the file with the key's certificate")
    if not certificate:
        return
    try:
        # An empty password, because OpenSSL would otherwise ask for one on the terminal.
        context.load_cert_chain(certificate, key, password=options.get("ssl_password", ""))
    except OSError as error:
        files = f"ssl_certfile={certificate}" + (f" with ssl_keyfile={key}" if key else "")
        raise ValueError(
            f"{files} cannot be loaded: {error}; name a certificate and its key as PEM files, and ssl_password if the "
            "key is encrypted"
        ) from error


def _check_protocol(context: ssl.SSLContext, options: Mapping[str, Any]) -> None:
    if "ssl_min_version" in options:
        try:
            context.minimum_version = options["ssl_min_version"]
        except (TypeError, ValueError) as error:
            versions = ", ".join(f"{version.value} ({version.name})" for version in _VERSIONS)
            raise ValueError(
                f"ssl_min_version={options['ssl_min_version']} is unknown; write one of {versions}"
            ) from error
    if "ssl_ciphers" in options:
        try:
            context.set_ciphers(options["ssl_ciphers"])
        except ssl.SSLError as error:
            raise ValueError(f"ssl_ciphers={options['ssl_ciphers']!r} selects no cipher of OpenSSL") from error
