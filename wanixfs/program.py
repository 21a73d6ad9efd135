"""The server program: opens the house, mounts and listens, until a signal says how to end."""

import fcntl
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from errno import EBUSY, EINVAL
from functools import partial
from pathlib import Path

import structlog
import trio

from tasks.drivers.linux.driver import LinuxDriver
from tasks.drivers.linux.driver import opened as linux_driver
from tasks.drivers.linux.roots import Roots
from tasks.drivers.linux.vault import SupervisorVault
from tasks.drivers.vm.driver import VmDriver
from tasks.drivers.vm.kernel import default_cache
from tasks.drivers.vm.qemu import Qemu
from tasks.drivers.wasi.driver import WasiDriver
from tasks.recovery import LOST
from vfs.fuse.devfuse import Mount, mounted, unmount
from vfs.ninep import address
from vfs.ninep.server import Server
from vfs.ninep.server import serve as serve_ninep
from wanixfs.config import Config
from wanixfs.forgetting import Forgetting
from wanixfs.house import House
from wanixfs.notify import notify
from wanixfs.rpc import Rpc

log = structlog.get_logger("wanixfs")

FUSE_KEY = "fuse"
FUSE_GRACE = 30.0
"""Seconds for which the supervisor keeps the mount of a server that is gone."""


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT (tasks and supervisor end too) or SIGHUP (they go on under a new server).

    OSError with a message for the user where that cannot be done.
    """
    with locked(config.state):
        again = await _serve(config)
    if again:
        os.execv(sys.executable, [sys.executable, "-m", "wanixfs.cli", *sys.argv[1:]])


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Hold the state directory, made if need be, against any other server. EBUSY."""
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(EBUSY, f"another server uses the state directory {state}") from None
        yield
    finally:
        os.close(fd)


async def _serve(config: Config) -> bool:
    """Serve until a signal, or the loss of the supervisor; returns whether a new server is wanted."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with opened(config) as (house, driver), AsyncExitStack() as stack:
            token = config.token or _token(config.state / "token")
            await _listen(house, token, stack)
            mount = await _mount(house, driver.vault, stack)
            if os.geteuid() == 0:
                _give_roots(house, driver, mount)
            if mount is not None:
                nursery = await stack.enter_async_context(trio.open_nursery())
                stack.callback(nursery.cancel_scope.cancel)
                forgetting = Forgetting(house, mount)
                house.service.on_removed.append(forgetting.removed)
                nursery.start_soon(forgetting.run)
            lost = trio.Event()

            def replace_us(reason: str) -> None:
                if reason == LOST:  # and not that another server has taken over
                    house.sessions.halt()  # what its tasks were at is the next server's to see
                    lost.set()
                    os.kill(os.getpid(), signal.SIGHUP)

            house.service.on_lost.append(replace_us)
            keeper = await stack.enter_async_context(trio.open_nursery())
            stack.callback(house.sessions.halt)
            await keeper.start(house.sessions.run)
            if config.rpc is not None:
                await _serve_rpc(house, token, stack)
            if config.http is not None:
                await _serve_http(house, token, stack)
            notify("READY=1")
            log.info("serving", addresses=list(config.listen), mount=str(mount.path) if mount else None)
            number = await anext(signals)
            log.info("stopping", signal=signal.Signals(number).name)
            house.sessions.halt()
            if number == signal.SIGHUP:
                notify("RELOADING=1")
                await house.service.settle()
                if mount is not None:
                    mount.keep = not lost.is_set()  # nobody else holds it now
                return True
            notify("STOPPING=1")
            await driver.quit()
            house.homes.suspend()
    return False


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[tuple[House, LinuxDriver]]:
    """Yield a house whose tasks run, and what runs them. Leaving the block leaves them running."""
    async with trio.open_nursery() as nursery:
        house = House(config, nursery)
        async with linux_driver(config.state, house.service) as driver:
            try:
                files = Server(locks=house.locks)
                await nursery.start(files.run)
                wasi = WasiDriver(driver, house.service, files, config.state / "wasm")
                vm = VmDriver(
                    driver,
                    house.service,
                    files,
                    machine=Qemu(),
                    spools=config.state / "spools",
                    kernels=default_cache(os.environ, os.geteuid()),
                    cache=config.state / "vm",
                )
                await nursery.start(vm.run)
                await house.open({each.name: each for each in (driver, wasi, vm)}, driver.vault)
                await nursery.start(house.service.run)
                yield house, driver
            except Exception:
                if await driver.is_idle():  # started for nothing
                    await driver.quit()
                raise
            nursery.cancel_scope.cancel()
    house.close()


async def _listen(house: House, token: str, stack: AsyncExitStack) -> None:
    """Serve 9P on every configured address until the stack unwinds."""
    listeners = [_listener(house.config, text, stack, mode=0o666) for text in house.config.listen]
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    await nursery.start(partial(serve_ninep, listeners, partial(house.attach, token), locks=house.locks))


def _listener(config: Config, text: str, stack: AsyncExitStack, *, mode: int) -> socket.socket:
    """Listen on an address; a unix socket gets `mode`, and goes when the stack unwinds."""
    where = address.parse(text)
    if where.network == "unix":
        Path(where.path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        stack.callback(Path(where.path).unlink, missing_ok=True)
    return address.listen(where, allow_remote=config.allow_remote, mode=mode)


async def _serve_rpc(house: House, token: str, stack: AsyncExitStack) -> None:
    """Serve the sessions' RPC until the stack unwinds; on a unix socket to the administrator alone."""
    listener = _listener(house.config, house.config.rpc or "", stack, mode=0o600)
    nursery = await stack.enter_async_context(trio.open_nursery())
    stack.callback(nursery.cancel_scope.cancel)
    streams = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
    await nursery.start(Rpc(house.sessions, token).serve, streams)


async def _serve_http(house: House, token: str, stack: AsyncExitStack) -> None:
    """Serve HTTP until the stack unwinds; say once on stdout where, with the token."""
    from wanixfs.http.app import application  # what it takes is loaded only where it is asked for
    from wanixfs.http.server import serving

    config = house.config
    where = address.parse(config.http or "")
    listener = address.listen(where, allow_remote=config.allow_remote)
    app = application(
        sessions=house.sessions,
        service=house.service,
        root=house.views.admin.namespace.root,
        token=token,
        names={"localhost", "127.0.0.1", "::1", where.host, socket.gethostname(), *config.http_names},
    )
    url = await stack.enter_async_context(serving(app, listener))
    print(f"{url}/?token={token}", flush=True)


def _token(path: Path) -> str:
    """Return the token of this state directory, made on first use; only its owner can read the file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(token + "\n")
        return token


def _give_roots(house: House, driver: LinuxDriver, mount: Mount | None) -> None:
    """Let tasks have their namespaces as roots, and those that run already follow theirs again.

    Without a mount a task that has `/task` or the like cannot start: better than one that sees the host's root.
    """
    state = house.config.state
    driver.roots = Roots(
        devices={"host": Path("/"), "tmp": state / "tmp", "home": state / "homes"},
        views=mount.path / ".views" if mount else None,
    )
    for task in house.service.tasks.values():
        if task.state.live and task.kind == driver.name:
            driver.follow(house.service.launch(task, {}, {}))


async def _mount(house: House, vault: SupervisorVault, stack: AsyncExitStack) -> Mount | None:
    """Mount the administrator's tree, or go on with the mount that an earlier server left to the supervisor.

    Root mounts it in the state directory where no place was given: tasks need it. None without FUSE there.
    """
    config = house.config
    place = config.mount
    if place is None and os.geteuid() == 0 and os.path.exists("/dev/fuse"):
        place = config.state / "mnt"
    record = config.state / "mountpoint"
    left = await vault.take(FUSE_KEY)
    old = Path(record.read_text()) if record.exists() else None
    if left and old != place:
        os.close(left.pop())
        vault.drop(FUSE_KEY)
    if old is not None and not left:  # elsewhere, or dead
        record.unlink()
        try:
            unmount(old)
        except OSError as error:
            if error.errno != EINVAL:
                log.warning("an old mount is left", path=str(old), error=str(error))
    if place is None:
        return None
    if not left:  # else it is ours to answer: looking there would wait for ourselves
        place.mkdir(parents=True, exist_ok=True)
    root = house.views.admin.namespace.root
    mount = await stack.enter_async_context(
        mounted(
            place,
            root,
            fd=left[0] if left else None,
            journal=config.state / "fuse.nodes",
            views=house.task_root,
            locks=house.locks,
        )
    )
    record.write_text(str(place))
    vault.hold(FUSE_KEY, [mount.fd], grace=FUSE_GRACE)
    return mount
