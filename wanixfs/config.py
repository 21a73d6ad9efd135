"""What the server is told at start: one frozen value, checked once, passed down from the composition root."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasks.sessions.policy import Policy as SessionPolicy
from vfs.ninep import address as addresses

UID_MAX = 2**31 - 1


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it."""


def default_state(env: Mapping[str, str], uid: int) -> Path:
    """Return where the server keeps what outlives it: WANIXFS_STATE, /var/lib for root, else XDG_STATE_HOME."""
    if named := env.get("WANIXFS_STATE"):
        return Path(named)
    if uid == 0:
        return Path("/var/lib/wanixfs")
    return Path(env.get("XDG_STATE_HOME") or Path(env.get("HOME", "/")) / ".local/state") / "wanixfs"


def default_socket(env: Mapping[str, str], uid: int, state: Path) -> Path:
    """Return the unix socket that server and clients agree on when nobody says otherwise."""
    if uid == 0:
        return Path("/run/wanixfs/9p")
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "wanixfs/9p"
    return state / "9p"


def default_address(env: Mapping[str, str], uid: int) -> str:
    """Return the address a client dials: WANIXFS_ADDR, else the default socket of this user's server."""
    return env.get("WANIXFS_ADDR") or f"unix!{default_socket(env, uid, default_state(env, uid))}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one server. Seconds, bytes, counts; paths are absolute. ConfigError when a value cannot be used."""

    state: Path
    listen: tuple[str, ...]
    """Addresses of the 9P server, as `vfs.ninep.address` writes them."""
    rpc: str | None = None
    """Address of the sessions' RPC, as `vfs.ninep.address` writes it."""
    allow_remote: bool = False
    """Whether a TCP address may be another than loopback."""
    http: str | None = None
    """Where HTTP is served, written like an address of 9P but TCP; None: nowhere."""
    http_names: tuple[str, ...] = ()
    """Further host names that browsers may know the HTTP server by."""
    mount: Path | None = None
    """Where the administrator's tree is mounted; None serves 9P only."""
    namespace: Path | None = None
    """The namespace(6)-style script of the init namespace; None is the one that is shipped."""
    group: str | None = None
    """Members of this group may make tasks too."""
    token: str | None = None
    """What a TCP client must present; None: a fresh one, kept in the state directory."""
    keep_tasks: int = 1000
    keep_seconds: float = 24 * 3600
    """Exited tasks are kept until they are older than this or more than `keep_tasks`."""
    grace_seconds: float = 600
    """How long a task may stay allocated without ever being configured or started."""
    spool_limit: int = 64 << 20
    """Newest bytes kept of each output stream."""
    sessions: SessionPolicy = field(default_factory=SessionPolicy)
    first_uid: int = 200_000
    last_uid: int = 265_535
    """Uids given to task users, both inclusive."""

    def __post_init__(self) -> None:
        for name, path in (
            ("state", self.state),
            ("mount", self.mount),
            ("namespace", self.namespace),
            ("sessions: template", self.sessions.template),
        ):
            if path is not None and not path.is_absolute():
                raise ConfigError(f"{name}: not an absolute path: {path}")
        if not self.listen:
            raise ConfigError("listen: at least one address is needed")
        given = [("listen", address) for address in self.listen] + ([("rpc", self.rpc)] if self.rpc else [])
        for name, address in given:
            try:
                addresses.parse(address)
            except OSError as error:
                raise ConfigError(f"{name}: {error.strerror}") from error
        if self.http is not None:
            try:
                network = addresses.parse(self.http).network
            except OSError as error:
                raise ConfigError(f"http: {error.strerror}") from error
            if network != "tcp":
                raise ConfigError(f"http: not a TCP address: {self.http}")
        if self.mount is not None and (self.mount == self.state or self.mount in self.state.parents):
            raise ConfigError(f"mount: would hide the state directory: {self.mount}")
        for name, value, least in (
            ("keep-tasks", self.keep_tasks, 0),
            ("keep-seconds", self.keep_seconds, 0),
            ("grace", self.grace_seconds, 1),
            ("spool-limit", self.spool_limit, 4096),
        ):
            if not value >= least:
                raise ConfigError(f"{name}: at least {least} is needed, not {value}")
        if not 1 <= self.first_uid <= self.last_uid <= UID_MAX:
            raise ConfigError(f"uids: not a range of task users: {self.first_uid}-{self.last_uid}")
