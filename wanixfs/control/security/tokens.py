"""Tokens as their bearers hold them: `SECRET.FINGERPRINT`, the second half the authority's, to be pinned before trust.

The secret is 32 random bytes in base64url; the plane keeps their SHA-256 only.
"""

import re
import secrets
from dataclasses import dataclass
from errno import EINVAL
from hashlib import sha256

_TOKEN = re.compile(r"([A-Za-z0-9_-]{43})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A secret and the SHA-256, in hex, of the authority's certificate."""

    secret: str
    fingerprint: str

    @classmethod
    def made(cls, fingerprint: str) -> "BearerToken":
        return cls(secrets.token_urlsafe(32), fingerprint)

    @classmethod
    def read(cls, text: str) -> "BearerToken":
        """Return what a token's text says. EINVAL: it is none."""
        found = _TOKEN.fullmatch(text.strip()) if len(text) < 256 else None
        if not found:
            raise OSError(EINVAL, "not a token of a control plane")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.secret}.{self.fingerprint}"

    def __repr__(self) -> str:
        return f"BearerToken(..., {self.fingerprint!r})"


def digest(secret: str) -> str:
    """Return what is kept of a secret, whatever its length or characters."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
