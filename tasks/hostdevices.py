"""Devices of the machine, such as a graphics card, that the administrator gives to a task: `bind #dev/NAME OLD`."""

import os
import stat as statmod
from pathlib import Path

from vfs.directory import LiveDir
from vfs.files import ROOT_OWNER, Synthetic
from vfs.node import Caller, Node, Stat, no_entry


class HostDevice(Synthetic):
    """A device of the host by its numbers. It acts only as a device node that a driver makes of it for a task."""

    __slots__ = ("rdev",)

    def __init__(self, mode: int, rdev: int) -> None:
        super().__init__(statmod.S_IFMT(mode) | 0o600, ROOT_OWNER)
        self.rdev = rdev

    async def stat(self) -> Stat:
        return (await super().stat())._replace(st_rdev=self.rdev)


def host_device(directory: Path, name: str) -> Node:
    """Return what stands at `name` in a directory of the host's /dev: a device, or a directory of them. ENOENT."""
    try:
        st = os.lstat(directory / name)
    except FileNotFoundError:
        raise no_entry(name) from None
    if statmod.S_ISDIR(st.st_mode):

        def child(below: str, who: Caller) -> Node:
            return host_device(directory / name, below)

        return LiveDir(lambda: (), child, owner=ROOT_OWNER)
    if not (statmod.S_ISCHR(st.st_mode) or statmod.S_ISBLK(st.st_mode)):
        raise no_entry(name)
    return HostDevice(st.st_mode, st.st_rdev)
