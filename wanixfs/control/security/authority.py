"""The certificate authority that workers pin: it signs the plane's own certificate and those of workers, no others.

P-256 throughout. A worker's name stands in the common name and, after SPIFFE, in a URI (RFC 5280 4.2.1.6). Nothing of a
request but its key is taken over, and that only if the request is signed with it.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from errno import EACCES, EINVAL
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from wanixfs.control.model import WorkerId

SERVER_NAME = "taskrun-control-plane"
CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=365)
MIN_WORKER_LIFE = timedelta(minutes=1)
MAX_WORKER_LIFE = timedelta(days=7)
CLOCK_SKEW = timedelta(minutes=5)
MAX_REQUEST = 16 << 10

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")
_URI = "spiffe://taskrun/worker/"


def check_name(name: str) -> str:
    """Return the name of a worker or client. EINVAL: it is none."""
    if not _NAME.fullmatch(name):
        raise OSError(EINVAL, f"{name[:64]!r} is no name: 1 to 48 letters, digits, '.', '_', '-'")
    return name


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


def new_key() -> bytes:
    """Make a P-256 private key: PEM, PKCS#8, not encrypted."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def request(key: bytes, worker_id: WorkerId | str) -> bytes:
    """Return a certificate signing request for a key, as PEM."""
    private = _private(key)
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name(f"worker:{worker_id}"))
        .sign(private, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 of a PEM certificate, in hex. EINVAL: it is none."""
    return _certificate(certificate).fingerprint(hashes.SHA256()).hex()


def serial_of(certificate: bytes) -> str:
    """Return the serial number of a PEM certificate, in hex. EINVAL: it is none."""
    return f"{_certificate(certificate).serial_number:x}"


def expiry_ms(certificate: bytes) -> int:
    """Return when a PEM certificate expires, in Unix milliseconds. EINVAL: it is none."""
    return int(_certificate(certificate).not_valid_after_utc.timestamp() * 1_000)


def worker_of(certificate: bytes) -> WorkerId:
    """Return the worker that a certificate names. EACCES: it names none, or is not one for clients. EINVAL.

    Whether the authority signed it, TLS has checked.
    """
    found = _certificate(certificate)
    try:
        usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise OSError(EACCES, "the certificate names no worker") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    common = [str(each.value) for each in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages or len(uris) != 1 or not uris[0].startswith(_URI):
        raise OSError(EACCES, "the certificate is not a worker's")
    worker_id = uris[0].removeprefix(_URI)
    if common != [f"worker:{worker_id}"]:
        raise OSError(EACCES, "the certificate's names differ")
    return WorkerId(check_name(worker_id))


class Authority:
    """A key and its own certificate, which signs others."""

    def __init__(self, pair: KeyPair) -> None:
        self.pair = pair
        self._key = _private(pair.key)
        self._certificate = _certificate(pair.certificate)

    @classmethod
    def made(cls, *, now: datetime | None = None) -> "Authority":
        """Make a new authority, good for ten years."""
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("taskrun authority")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = (
            _builder(name, name, key.public_key(), now or datetime.now(UTC), CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        signed = builder.sign(key, hashes.SHA256())
        return cls(KeyPair(_pem(key), signed.public_bytes(serialization.Encoding.PEM)))

    def server(self, *addresses: str, now: datetime | None = None) -> KeyPair:
        """Issue the plane's own certificate, for its fixed name, localhost and these host names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_general_name(each) for each in dict.fromkeys((SERVER_NAME, "localhost", *addresses))]
        return KeyPair(
            _pem(key),
            self._sign(SERVER_NAME, names, ExtendedKeyUsageOID.SERVER_AUTH, key.public_key(), SERVER_LIFE, now),
        )

    def worker(self, worker_id: WorkerId, csr: bytes, life: timedelta, *, now: datetime | None = None) -> bytes:
        """Sign a worker's key for a time and return the certificate as PEM.

        EINVAL: no request as PEM, not signed with its own key, not P-256, or a time out of bounds.
        """
        if not MIN_WORKER_LIFE <= life <= MAX_WORKER_LIFE:
            raise OSError(EINVAL, f"a worker's certificate lives {MIN_WORKER_LIFE} to {MAX_WORKER_LIFE}")
        names = [x509.UniformResourceIdentifier(_URI + check_name(worker_id))]
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._sign(f"worker:{worker_id}", names, usage, _requested_key(csr), life, now)

    def _sign(
        self,
        common: str,
        names: list[x509.UniformResourceIdentifier] | list[x509.DNSName | x509.IPAddress],
        usage: ObjectIdentifier,
        key: ec.EllipticCurvePublicKey,
        life: timedelta,
        now: datetime | None,
    ) -> bytes:
        return (
            _builder(_name(common), self._certificate.subject, key, now or datetime.now(UTC), life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def _requested_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr) > MAX_REQUEST:
        raise OSError(EINVAL, f"a request is at most {MAX_REQUEST} bytes")
    try:
        found = x509.load_pem_x509_csr(csr)
        key, signed = found.public_key(), found.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OSError(EINVAL, f"not a certificate signing request: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise OSError(EINVAL, "the request's key is not on P-256")
    if not signed:
        raise OSError(EINVAL, "the request is not signed with its own key")
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(address: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OSError(EINVAL, f"not a private key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise OSError(EINVAL, "the private key is not on a curve")
    return key


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise OSError(EINVAL, f"not a certificate: {error}") from None
