"""`/fs/PATH`: the administrator's tree, to read. A file's bytes, a directory's names, a stream while it goes on."""

import mimetypes
import os
import stat as statmod
from collections.abc import Sequence
from errno import EINVAL, EIO
from functools import partial
from html import escape
from urllib.parse import quote, unquote_to_bytes

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from vfs.node import ROOT, DirEntry, Handle, Node, StatResult
from vfs.walk import walk
from wanixfs.http.answers import Live, Piece, refusal

BLOCK = 256 << 10
SANDBOX = "sandbox; default-src 'none'"
"""What a file may do that a browser shows: nothing. It may come from any task."""
SHOWN = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "application/json", "application/pdf"})
"""Types told to browsers as what they are; other text is plain text."""
KINDS = {statmod.S_IFDIR: "directory", statmod.S_IFLNK: "symlink", statmod.S_IFREG: "file"}


class Files:
    """Serves the tree below `root` with the administrator's rights."""

    def __init__(self, root: Node) -> None:
        self._root = root

    async def __call__(self, request: Request) -> Response:
        """Answer GET and HEAD.

        `?offset=N` starts there; `?wait=0` ends a stream where it would wait. `Range` is for files that have a size.
        405 for a file whose open makes something.
        """
        raw: bytes = request.scope.get("raw_path") or quote(request.url.path).encode()
        path = os.fsdecode(unquote_to_bytes(raw.partition(b"?")[0])).removeprefix("/fs")
        node = await walk(self._root, path or "/", ROOT)
        st = await node.stat()
        if statmod.S_ISDIR(st.st_mode):
            if not path.endswith("/"):
                return RedirectResponse(request.url.path + "/")
            return await self._directory(request, path, node)
        if node.allocates:
            return refusal(405, "EPERM", "opening this file makes something, which a GET must not")
        if request.method == "HEAD":
            return Response(headers=_headers(path, st) | {"content-length": str(st.st_size)})
        handle = await node.open(os.O_RDONLY, ROOT)
        try:
            return await self._file(request, path, st, handle)
        except BaseException:
            handle.close()
            raise

    @staticmethod
    async def _directory(request: Request, path: str, node: Node) -> Response:
        entries = await node.readdir(ROOT)
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse([{"name": entry.name, "type": _kind(entry)} for entry in entries])
        return HTMLResponse(_listing(path, entries).encode("utf-8", "replace"))

    async def _file(self, request: Request, path: str, st: StatResult, handle: Handle) -> Response:
        headers = _headers(path, st)
        start = _number(request.query_params.get("offset", "0"))
        if handle.direct:
            nonblock = request.query_params.get("wait") == "0"
            return Live(partial(_send, handle, start, None, nonblock), headers=headers, close=handle.close)
        status, end = 200, st.st_size
        headers["accept-ranges"] = "bytes"
        if part := _range(request.headers.get("range", ""), st.st_size):
            status, (start, end) = 206, part
            if start >= end:
                handle.close()
                return Response(status_code=416, headers={"content-range": f"bytes */{st.st_size}"})
            headers["content-range"] = f"bytes {start}-{end - 1}/{st.st_size}"
        size = max(0, end - start)
        headers["content-length"] = str(size)
        return Live(partial(_send, handle, start, size, False), status, headers, close=handle.close)


async def _send(handle: Handle, offset: int, size: int | None, nonblock: bool, piece: Piece) -> None:
    """Send a file's bytes from `offset` on: `size` of them, or all until its end, or until it would wait."""
    while size is None or size > 0:
        try:
            block = bytes(await handle.read(BLOCK if size is None else min(size, BLOCK), offset, nonblock))
        except BlockingIOError:
            return
        if not block:
            if size is not None:
                raise OSError(EIO, "the file became shorter")
            return
        offset += len(block)
        if size is not None:
            size -= len(block)
        await piece(block)


def _headers(path: str, st: StatResult) -> dict[str, str]:
    guess = mimetypes.guess_type(path)[0] or ("text/plain" if not st.st_size else "application/octet-stream")
    if guess not in SHOWN and (guess.startswith("text/") or guess.endswith(("+xml", "/xml", "javascript"))):
        guess = "text/plain; charset=utf-8"
    elif guess not in SHOWN:
        guess = "application/octet-stream"
    return {"content-type": guess, "content-security-policy": SANDBOX}


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first and the last byte + 1 that `Range` asks for, None for all (RFC 9110: what is not understood)."""
    unit, _, spec = header.partition("=")
    first, dash, last = spec.partition("-")
    if unit != "bytes" or not dash or "," in spec or not all(not part or part.isdigit() for part in (first, last)):
        return None
    if first:
        return int(first), min(int(last) + 1, size) if last else size
    return (max(0, size - int(last)), size) if last else None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise OSError(EINVAL, f"offset: not a number: {text[:32]!r}")
    return int(text)


def _kind(entry: DirEntry) -> str:
    return KINDS.get(entry.type, "other")


def _listing(path: str, entries: Sequence[DirEntry]) -> str:
    rows = "".join(
        f'<li><a href="{quote(os.fsencode(entry.name))}{"/" * (entry.type == statmod.S_IFDIR)}">'
        f"{escape(entry.name)}{'/' * (entry.type == statmod.S_IFDIR)}</a>"
        for entry in entries
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(path)}</title>'
        f'<link rel="stylesheet" href="/static/page.css"><main class="listing"><h1>{escape(path)}</h1>'
        f'<ul><li><a href="../">../</a>{rows}</ul></main></html>'
    )
