"""The control plane as a process: from its place on disk to its ports, until a signal ends it."""

import asyncio
import signal
from collections.abc import Callable

from wanixfs.control.credentials import Role
from wanixfs.control.place import Place, Profile
from wanixfs.control.service.server import Ports, Serving, served
from wanixfs.control.store import SQLiteStore

ADMINISTRATOR = "administrator"


async def serve(place: Place, *, host: str, ports: Ports, ready: Callable[[Serving], None]) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once all ports answer. OSError: the place or a port is taken."""
    with place.held():
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        store = SQLiteStore(place.store)
        try:
            async with served(store, place.authority(), host=host, ports=ports) as serving:
                await _keep_profile(place, serving, host)
                ready(serving)
                await ended.wait()
        finally:
            await store.close()


async def _keep_profile(place: Place, serving: Serving, host: str) -> None:
    """Leave the administrator a profile, with the same token as long as there is one."""
    address = f"[{host}]:{serving.ports.clients}" if ":" in host else f"{host}:{serving.ports.clients}"
    if place.profile.exists():
        token = Profile.read(place.profile).token
    else:
        token = str(await serving.access.issue(Role.ADMIN, ADMINISTRATOR))
    Profile(address=address, token=token, authority=serving.access.authority.decode()).write(place.profile)
