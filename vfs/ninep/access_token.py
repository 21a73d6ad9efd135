"""The token that a 9P client over TCP carries in its attach name: `PATH?TOKEN`."""

import hmac
import os
from errno import EACCES


def split_aname(aname: str) -> tuple[str, str]:
    """Return (path, token) of an attach name; the token is "" where there is none (a token holds no "?")."""
    path, mark, token = aname.rpartition("?")
    return (path, token) if mark else (aname, "")


def authorised_path(aname: str, token: str) -> str:
    """Return the path that `aname` asks for if it carries `token`, compared in constant time. EACCES.

    An empty expected `token` lets nobody in.
    """
    path, given = split_aname(aname)
    if not hmac.compare_digest(os.fsencode(given), os.fsencode(token)) or not token:
        raise OSError(EACCES, "the attach name carries no valid token (PATH?TOKEN)")
    return path
