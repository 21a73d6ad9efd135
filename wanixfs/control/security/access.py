"""Enrollment, renewal, revocation, and who a token or a certificate stands for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from errno import EACCES, EALREADY
from time import time

from wanixfs.control.credentials import Certificate, Role, Token
from wanixfs.control.model import WorkerId
from wanixfs.control.security.authority import (
    Authority,
    check_name,
    expiry_ms,
    fingerprint,
    serial_of,
    worker_of,
)
from wanixfs.control.security.tokens import BearerToken, digest
from wanixfs.control.store.base import Store, Transaction

ENROLL_LIFE_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What an enrolled worker is given, PEM, and until when it holds."""

    worker_id: WorkerId
    certificate: bytes
    authority: bytes
    expires_at_ms: int


class Access:
    """The credentials of one control plane. Secrets leave it once, when they are made.

    A certificate counts if the authority signed it, which TLS checks, and if it is among those kept here, not revoked
    and not expired, which is checked for each stream and again while a stream lasts.
    """

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        certificate_life: timedelta = timedelta(days=1),
        now_ms: Callable[[], int] = lambda: int(time() * 1_000),
    ) -> None:
        self._store = store
        self._authority = authority
        self._life = certificate_life
        self._now_ms = now_ms

    @property
    def authority(self) -> bytes:
        """The authority's certificate as PEM: public, and what a token's fingerprint is of."""
        return self._authority.pair.certificate

    async def issue(self, role: Role, name: str, *, life_ms: int = 0) -> BearerToken:
        """Make a token for a client, or one that enrolls the worker `name` (within an hour, or `life_ms`). EINVAL."""
        check_name(name)
        bearer = BearerToken.made(fingerprint(self.authority))
        life_ms = life_ms or (ENROLL_LIFE_MS if role == Role.ENROLL else 0)
        expires = self._now_ms() + life_ms if life_ms else 0
        async with self._store.transaction() as transaction:
            await transaction.put_token(
                Token(digest=digest(bearer.secret), role=role, name=name, expires_at_ms=expires)
            )
        return bearer

    async def client(self, secret: str, asked: Role) -> str:
        """Return the name of a client whose token lets it do what is asked. EACCES."""
        async with self._store.transaction() as transaction:
            token = await self._valid(transaction, secret)
        if not token.role.includes(asked):
            raise OSError(EACCES, f"this needs the role {asked}")
        return token.name

    async def enroll(self, secret: str, csr: bytes) -> Enrolled:
        """Use up a token and sign its worker's key.

        EACCES: no such token, or expired. EALREADY: used. EINVAL: a bad request, which uses up nothing.
        """
        async with self._store.transaction() as transaction:
            token = await self._valid(transaction, secret)
            if token.role != Role.ENROLL:
                raise OSError(EACCES, "the token does not enroll workers")
            if token.used_at_ms:
                raise OSError(EALREADY, "the token has been used")
            enrolled = await self._sign(transaction, WorkerId(token.name), csr)
            await transaction.put_token(replace(token, used_at_ms=self._now_ms()))
            return enrolled

    async def renew(self, certificate: bytes, csr: bytes) -> Enrolled:
        """Sign a new key for the worker of a certificate, which holds on until it expires. EACCES, EINVAL."""
        async with self._store.transaction() as transaction:
            held = await self._held(transaction, certificate)
            return await self._sign(transaction, held.worker_id, csr)

    async def worker(self, certificate: bytes) -> Certificate:
        """Return what is kept of a worker's certificate. EACCES: unknown, revoked, expired, or not a worker's."""
        async with self._store.transaction() as transaction:
            return await self._held(transaction, certificate)

    async def revoke(self, worker_id: WorkerId) -> int:
        """Revoke all of a worker's certificates and return how many; it comes back only by a new token."""
        async with self._store.transaction() as transaction:
            held = [each for each in await transaction.certificates(worker_id) if not each.revoked]
            for each in held:
                await transaction.put_certificate(replace(each, revoked=True))
            return len(held)

    async def _valid(self, transaction: Transaction, secret: str) -> Token:
        token = await transaction.token(digest(secret))
        if token is None or 0 < token.expires_at_ms <= self._now_ms():
            raise OSError(EACCES, "the token is unknown or expired")
        return token

    async def _held(self, transaction: Transaction, certificate: bytes) -> Certificate:
        named = worker_of(certificate)
        held = await transaction.certificate(serial_of(certificate))
        if held is None or held.worker_id != named:
            raise OSError(EACCES, "the certificate is not one that is kept here")
        if held.revoked:
            raise OSError(EACCES, "the certificate is revoked")
        if held.expires_at_ms <= self._now_ms():
            raise OSError(EACCES, "the certificate has expired")
        return held

    async def _sign(self, transaction: Transaction, worker_id: WorkerId, csr: bytes) -> Enrolled:
        now = datetime.fromtimestamp(self._now_ms() / 1_000, UTC)
        signed = self._authority.worker(worker_id, csr, self._life, now=now)
        expires = expiry_ms(signed)
        kept = Certificate(serial=serial_of(signed), worker_id=worker_id, expires_at_ms=expires)
        await transaction.put_certificate(kept)
        return Enrolled(worker_id=worker_id, certificate=signed, authority=self.authority, expires_at_ms=expires)
