"""What is kept of the credentials that were given out; never a secret."""

from dataclasses import dataclass
from enum import StrEnum

from wanixfs.control.model import WorkerId


class Role(StrEnum):
    """What a token lets its bearer do; each of the last three may do what the one before may."""

    ENROLL = "enroll"
    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def includes(self, asked: "Role") -> bool:
        if Role.ENROLL in (self, asked):
            return self == asked
        return _RANK[self] >= _RANK[asked]


_RANK = {Role.READ: 0, Role.SUBMIT: 1, Role.ADMIN: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token by its SHA-256 in hex. `name` is the worker that it enrolls, or the client that bears it.

    `expires_at_ms` 0: never. `used_at_ms` 0: not yet; a token for enrolling is used once.
    """

    digest: str
    role: Role
    name: str
    expires_at_ms: int
    used_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A worker's certificate that this plane's authority signed, by its serial number in hex."""

    serial: str
    worker_id: WorkerId
    expires_at_ms: int
    revoked: bool = False
