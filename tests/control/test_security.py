"""Every refusal that needs no network."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from errno import EACCES, EALREADY, EINVAL

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from wanixfs.control.credentials import Role
from wanixfs.control.model import RunId, WorkerId
from wanixfs.control.security.access import Access
from wanixfs.control.security.authority import (
    MAX_REQUEST,
    Authority,
    expiry_ms,
    fingerprint,
    new_key,
    request,
    serial_of,
    worker_of,
)
from wanixfs.control.security.replay import ReplayGuard
from wanixfs.control.security.tokens import BearerToken, digest
from wanixfs.control.store import MemoryStore, SQLiteStore, Store

W1 = WorkerId("w1")
DAY = timedelta(days=1)
START_MS = 1_800_000_000_000
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.made(now=datetime.fromtimestamp(START_MS / 1_000, UTC))


def refused(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


async def refused_later(call: Awaitable[object]) -> int | None:
    try:
        await call
    except OSError as error:
        return error.errno
    return None


def other_request(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "worker:w1")])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256()).public_bytes(PEM)


def test_a_workers_certificate_holds_its_own_key_its_name_and_its_time(authority: Authority) -> None:
    key = new_key()
    at = datetime.fromtimestamp(START_MS / 1_000, UTC)
    signed = authority.worker(W1, request(key, "another name"), DAY, now=at)
    found = x509.load_pem_x509_certificate(signed)
    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey) and found.public_key() == private.public_key()
    found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pair.certificate))
    assert worker_of(signed) == W1
    assert expiry_ms(signed) == START_MS + 86_400_000
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_that_is_not_signed_with_its_own_key_is_refused(authority: Authority) -> None:
    mine, other = (x509.load_pem_x509_csr(request(new_key(), "w1")) for _ in range(2))
    body = mine.public_bytes(serialization.Encoding.DER)
    point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    own, foreign = mine.public_key(), other.public_key()
    assert isinstance(own, ec.EllipticCurvePublicKey) and isinstance(foreign, ec.EllipticCurvePublicKey)
    swapped = body.replace(own.public_bytes(*point), foreign.public_bytes(*point))
    assert swapped != body
    lines = base64.encodebytes(swapped).decode()
    forged = f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n".encode()
    assert refused(lambda: authority.worker(W1, forged, DAY)) == EINVAL


@pytest.mark.parametrize(
    "csr",
    [
        b"",
        b"not PEM",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"x" * (MAX_REQUEST + 1),
        other_request(rsa.generate_private_key(65537, 2048)),
        other_request(ec.generate_private_key(ec.SECP384R1())),
    ],
    ids=["empty", "text", "rubbish", "long", "rsa", "p384"],
)
def test_a_bad_request_is_refused(authority: Authority, csr: bytes) -> None:
    assert refused(lambda: authority.worker(W1, csr, DAY)) == EINVAL


@pytest.mark.parametrize("name", ["", "a/b", "../x", "x" * 49, "-x", "a\nb", "w1?x"])
def test_a_bad_name_is_never_signed(authority: Authority, name: str) -> None:
    assert refused(lambda: authority.worker(WorkerId(name), request(new_key(), "w"), DAY)) == EINVAL


@pytest.mark.parametrize("life", [timedelta(seconds=59), timedelta(days=8), -DAY])
def test_certificates_are_short_lived(authority: Authority, life: timedelta) -> None:
    assert refused(lambda: authority.worker(W1, request(new_key(), "w1"), life)) == EINVAL


def test_the_servers_certificate_is_no_workers(authority: Authority) -> None:
    assert refused(lambda: worker_of(authority.server("127.0.0.1", "plane.example").certificate)) == EACCES
    assert refused(lambda: worker_of(authority.pair.certificate)) == EACCES
    assert refused(lambda: worker_of(b"rubbish")) == EINVAL


def test_an_authority_is_the_same_after_it_was_kept(authority: Authority) -> None:
    again = Authority(authority.pair)
    signed = again.worker(W1, request(new_key(), "w1"), DAY)
    root = x509.load_pem_x509_certificate(authority.pair.certificate)
    x509.load_pem_x509_certificate(signed).verify_directly_issued_by(root)


@pytest.mark.parametrize("text", ["", "x", "a" * 43, "a" * 43 + "." + "g" * 64, "a" * 44 + "." + "0" * 64, "x" * 9999])
def test_what_is_no_token_is_told(text: str) -> None:
    assert refused(lambda: BearerToken.read(text)) == EINVAL


def test_a_token_says_which_authority_to_pin_and_is_never_printed_by_accident(authority: Authority) -> None:
    bearer = BearerToken.made(fingerprint(authority.pair.certificate))
    assert BearerToken.read(f"{bearer}\n") == bearer
    assert bearer.secret not in repr(bearer) and bearer.secret not in digest(bearer.secret)
    assert BearerToken.made(bearer.fingerprint) != bearer


@pytest.mark.parametrize(
    ("held", "asked", "allowed"),
    [
        (Role.READ, Role.READ, True),
        (Role.READ, Role.SUBMIT, False),
        (Role.SUBMIT, Role.READ, True),
        (Role.SUBMIT, Role.ADMIN, False),
        (Role.ADMIN, Role.SUBMIT, True),
        (Role.ADMIN, Role.ENROLL, False),
        (Role.ENROLL, Role.READ, False),
    ],
)
def test_a_role_includes_the_lesser_ones(held: Role, asked: Role, allowed: bool) -> None:
    assert held.includes(asked) == allowed


class Gate:
    """Access on a store, with a clock that the test turns."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self.now_ms = START_MS
        self.access = Access(store, authority, now_ms=lambda: self.now_ms)

    async def certificate(self, name: str = "w1") -> bytes:
        token = await self.access.issue(Role.ENROLL, name)
        return (await self.access.enroll(token.secret, request(new_key(), name))).certificate


Play = Callable[[Callable[[Gate], Awaitable[None]]], None]


@pytest.fixture(params=[MemoryStore, lambda: SQLiteStore(":memory:")], ids=["memory", "sqlite"])
def play(request: pytest.FixtureRequest, authority: Authority) -> Play:
    def run(body: Callable[[Gate], Awaitable[None]]) -> None:
        async def main() -> None:
            store = request.param()
            try:
                await body(Gate(store, authority))
            finally:
                await store.close()

        asyncio.run(main())

    return run


def test_a_token_enrolls_one_worker_once(play: Play) -> None:
    async def body(gate: Gate) -> None:
        token = await gate.access.issue(Role.ENROLL, "w1")
        csr = request(new_key(), "somebody else")
        assert await refused_later(gate.access.enroll(token.secret, b"bad")) == EINVAL
        enrolled = await gate.access.enroll(token.secret, csr)
        assert (enrolled.worker_id, worker_of(enrolled.certificate)) == (W1, W1)
        assert fingerprint(enrolled.authority) == token.fingerprint
        assert (await gate.access.worker(enrolled.certificate)).worker_id == W1
        assert await refused_later(gate.access.enroll(token.secret, csr)) == EALREADY

    play(body)


def test_a_token_that_is_unknown_expired_or_for_something_else_enrolls_nobody(play: Play) -> None:
    async def body(gate: Gate) -> None:
        csr = request(new_key(), "w1")
        token = await gate.access.issue(Role.ENROLL, "w1")
        admin = await gate.access.issue(Role.ADMIN, "root")
        for secret in ("", "x" * 43, "\udcff", admin.secret):
            assert await refused_later(gate.access.enroll(secret, csr)) == EACCES
        gate.now_ms += 3_600_000
        assert await refused_later(gate.access.enroll(token.secret, csr)) == EACCES

    play(body)


def test_a_client_may_do_what_its_role_includes(play: Play) -> None:
    async def body(gate: Gate) -> None:
        token = await gate.access.issue(Role.SUBMIT, "me", life_ms=1_000)
        assert await gate.access.client(token.secret, Role.SUBMIT) == "me"
        assert await refused_later(gate.access.client(token.secret, Role.ADMIN)) == EACCES
        assert await refused_later(gate.access.client("", Role.READ)) == EACCES
        enrolling = await gate.access.issue(Role.ENROLL, "w1")
        assert await refused_later(gate.access.client(enrolling.secret, Role.READ)) == EACCES
        gate.now_ms += 1_000
        assert await refused_later(gate.access.client(token.secret, Role.READ)) == EACCES

    play(body)


def test_a_revoked_worker_is_refused_with_every_certificate_until_it_enrolls_again(play: Play) -> None:
    async def body(gate: Gate) -> None:
        first = await gate.certificate()
        renewed = (await gate.access.renew(first, request(new_key(), "w1"))).certificate
        other = await gate.certificate("w2")
        assert await gate.access.revoke(W1) == 2
        for certificate in (first, renewed):
            assert await refused_later(gate.access.worker(certificate)) == EACCES
            assert await refused_later(gate.access.renew(certificate, request(new_key(), "w1"))) == EACCES
        assert (await gate.access.worker(other)).worker_id == "w2"
        assert await gate.access.revoke(W1) == 0
        assert (await gate.access.worker(await gate.certificate())).worker_id == W1

    play(body)


def test_renewal_leaves_the_old_certificate_until_it_expires(play: Play) -> None:
    async def body(gate: Gate) -> None:
        first = await gate.certificate()
        gate.now_ms += 16 * 3_600_000
        renewed = await gate.access.renew(first, request(new_key(), "w1"))
        assert serial_of(renewed.certificate) != serial_of(first)
        assert (await gate.access.worker(first)).worker_id == W1
        gate.now_ms += 8 * 3_600_000
        assert await refused_later(gate.access.worker(first)) == EACCES
        assert await refused_later(gate.access.renew(first, request(new_key(), "w1"))) == EACCES
        assert (await gate.access.worker(renewed.certificate)).worker_id == W1

    play(body)


def test_a_certificate_that_was_not_issued_here_is_refused(play: Play, authority: Authority) -> None:
    async def body(gate: Gate) -> None:
        unknown = authority.worker(W1, request(new_key(), "w1"), DAY)
        assert await refused_later(gate.access.worker(unknown)) == EACCES

    play(body)


class Clock:
    now_ms = START_MS


def test_an_assignment_passes_once() -> None:
    guard = ReplayGuard(now_ms=lambda: START_MS)
    guard.check(RunId("r"), "n", START_MS)
    assert refused(lambda: guard.check(RunId("r"), "n", START_MS)) == EALREADY
    assert refused(lambda: guard.check(RunId("r"), "n2", START_MS)) == EALREADY
    assert refused(lambda: guard.check(RunId("r2"), "n", START_MS)) == EALREADY
    guard.check(RunId("r2"), "n2", START_MS)


@pytest.mark.parametrize("off", [-300_001, 300_001])
def test_an_assignment_of_another_time_is_refused(off: int) -> None:
    guard = ReplayGuard(now_ms=lambda: START_MS)
    assert refused(lambda: guard.check(RunId("r"), "n", START_MS + off)) == EACCES
    assert refused(lambda: guard.check(RunId("r"), "", START_MS)) == EACCES


def test_what_is_forgotten_is_too_old_to_pass() -> None:
    clock = Clock()
    guard = ReplayGuard(max_kept=4, now_ms=lambda: clock.now_ms)
    ahead = START_MS + 300_000
    guard.check(RunId("r"), "n", ahead)
    guard.check(RunId("r2"), "n2", START_MS)
    assert refused(lambda: guard.check(RunId("r3"), "n3", START_MS)) == EACCES
    clock.now_ms += 600_000
    assert refused(lambda: guard.check(RunId("r"), "n", ahead)) == EALREADY
    clock.now_ms += 1
    assert refused(lambda: guard.check(RunId("r"), "n", ahead)) == EACCES
    guard.check(RunId("r3"), "n3", clock.now_ms)
