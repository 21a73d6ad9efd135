"""Settings are checked once, and the message names the one that is wrong."""

from pathlib import Path

import pytest

from wanixfs.config import Config, ConfigError, default_address, default_state


def config(**changed: object) -> Config:
    return Config(**({"state": Path("/var/lib/w"), "listen": ("unix!/run/w/9p",)} | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"state": Path("here")}, "state: not an absolute path"),
        ({"mount": Path("mnt")}, "mount: not an absolute path"),
        ({"mount": Path("/var")}, "mount: would hide the state directory"),
        ({"mount": Path("/var/lib/w")}, "mount: would hide the state directory"),
        ({"listen": ()}, "listen: at least one address"),
        ({"listen": ("unix!/" + "x" * 107,)}, "listen: a socket's path is at most"),
        ({"listen": ("udp!127.0.0.1!564",)}, "listen: unknown network"),
        ({"keep_tasks": -1}, "keep-tasks: at least 0"),
        ({"keep_seconds": float("nan")}, "keep-seconds: at least 0"),
        ({"grace_seconds": 0}, "grace: at least 1"),
        ({"spool_limit": 1}, "spool-limit: at least 4096"),
        ({"first_uid": 0}, "uids: not a range"),
        ({"first_uid": 20, "last_uid": 10}, "uids: not a range"),
        ({"last_uid": 2**31}, "uids: not a range"),
    ],
)
def test_setting_that_cannot_be_used_is_named(changed: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config(**changed)


def test_longest_unix_socket_path_is_taken() -> None:
    assert config(listen=("unix!/" + "x" * 106,)).listen


def test_state_and_address_follow_user_and_environment() -> None:
    assert default_state({}, 0) == Path("/var/lib/wanixfs")
    assert default_state({"WANIXFS_STATE": "/s"}, 0) == Path("/s")
    assert default_state({"HOME": "/home/u"}, 7) == Path("/home/u/.local/state/wanixfs")
    assert default_state({"HOME": "/home/u", "XDG_STATE_HOME": "/x"}, 7) == Path("/x/wanixfs")
    assert default_address({}, 0) == "unix!/run/wanixfs/9p"
    assert default_address({"XDG_RUNTIME_DIR": "/run/user/7"}, 7) == "unix!/run/user/7/wanixfs/9p"
    assert default_address({"WANIXFS_STATE": "/s"}, 7) == "unix!/s/9p"
    assert default_address({"WANIXFS_ADDR": "tcp!::1!564"}, 0) == "tcp!::1!564"
