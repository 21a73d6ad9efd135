"""How a machine becomes a worker: it pins the authority that its token names, before it tells the token to anybody."""

import json
import ssl
from errno import EACCES, EPROTO
from http.client import HTTPException, HTTPSConnection

from wanixfs.control.security.authority import KeyPair, fingerprint, new_key, request, worker_of
from wanixfs.control.security.tokens import BearerToken

MAX_ANSWER = 64 << 10
SECONDS = 30.0


def join(host: str, port: int, token: BearerToken) -> tuple[KeyPair, bytes]:
    """Enroll at a plane's port for it; return our key and certificate, and the authority's certificate, all PEM.

    EACCES: the plane is not the token's, or refuses it. EPROTO: no plane answers there. Else what connecting raises.
    """
    stranger = ssl.create_default_context()
    stranger.check_hostname = False
    stranger.verify_mode = ssl.CERT_NONE  # nothing is told to it, and what it says is held against the fingerprint
    _, authority = _ask(host, port, stranger, "GET", "/v1/ca")
    try:
        pinned = fingerprint(authority) == token.fingerprint
    except OSError:
        pinned = False
    if not pinned:
        raise OSError(EACCES, f"the plane at {host}:{port} is not the one that gave out the token")
    # The authority signs no server but the plane, so which of its names it is reached by does not matter.
    known = ssl.create_default_context(cadata=authority.decode())
    known.check_hostname = False
    key = new_key()
    words = {"bootstrap_token": str(token), "csr": request(key, "new").decode()}
    status, body = _ask(host, port, known, "POST", "/v1/enroll", json.dumps(words).encode())
    try:
        answer = json.loads(body)
        if status != 200:
            raise OSError(EACCES, f"the plane refuses: {answer['error']}")
        certificate = str(answer["worker_cert"]).encode()
    except (ValueError, KeyError, TypeError):
        raise OSError(EPROTO, f"what answers at {host}:{port} is no control plane") from None
    worker_of(certificate)
    return KeyPair(key, certificate), authority


def _ask(
    host: str, port: int, context: ssl.SSLContext, method: str, path: str, body: bytes | None = None
) -> tuple[int, bytes]:
    connection = HTTPSConnection(host, port, context=context, timeout=SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_ANSWER)
    except HTTPException as error:
        raise OSError(EPROTO, f"what answers at {host}:{port} is no control plane: {error}") from None
    finally:
        connection.close()
