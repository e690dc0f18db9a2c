"""The text of an API key, `flux2_ID_SECRET`, and the hash by which the service knows its secret.

The id is public: it names the record in Redis. The secret has 256 random bits, so nobody can guess it from its hash
however fast the hash is. One salted HMAC-SHA-256 is therefore enough, and a check takes microseconds; a slow hash, as
for passwords, would let anybody keep the API busy with wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Self

#: Every key begins with it.
KEY_PREFIX = "flux2_"
_ID_BYTES = 6
_SECRET_BYTES = 32
_SALT_BYTES = 16
# Hexadecimal: a double click selects all of it, and scanners for leaked secrets recognise it.
_TEXT = re.compile(rf"{KEY_PREFIX}([0-9a-f]{{{2 * _ID_BYTES}}})_([0-9a-f]{{{2 * _SECRET_BYTES}}})")


@dataclass(frozen=True, repr=False)
class KeyText:
    """The parts of a key's text; `str` returns the whole, which only the key's holder may see."""

    key_id: str
    secret: str

    @classmethod
    def make(cls, key_id: str | None = None) -> Self:
        """Make a new secret, for a new key or for the key with this id."""
        return cls(key_id or secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the parts of a text; None if no key has this form."""
        match = _TEXT.fullmatch(text)
        return match and cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{KEY_PREFIX}{self.key_id}_{self.secret}"


@dataclass(frozen=True)
class SecretHash:
    """The salted hash of a secret, in hexadecimal."""

    salt: str
    digest: str

    @classmethod
    def of(cls, secret: str) -> Self:
        salt = secrets.token_hex(_SALT_BYTES)
        return cls(salt, _digest(salt, secret))

    def matches(self, secret: str) -> bool:
        """Return whether the hash is that of `secret`, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.digest, _digest(self.salt, secret))


def _digest(salt: str, secret: str) -> str:
    return hmac.digest(salt.encode(), secret.encode(), hashlib.sha256).hex()
