"""The word to the service manager arrives, or is dropped in silence."""

import socket
from pathlib import Path

import pytest

from wanixfs.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_the_socket_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_notify_is_silent_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative", f"{tmp_path}/none"):
        monkeypatch.setenv("NOTIFY_SOCKET", value)
        notify("READY=1")
