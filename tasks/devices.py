"""The small devices that every namespace has: `#dev` (memory devices and descriptors) and `#etc` (users and hosts)."""

import os
from errno import ENOSPC
from pathlib import Path

from tasks.allowed import hosts_file
from tasks.hostdevices import host_device
from tasks.view import View
from vfs.directory import Dir, LiveDir
from vfs.files import ROOT_OWNER, Device, Link, Text
from vfs.node import Caller, Node, no_entry

_MACHINE_USERS = (("root", 0, 0, "/root"), ("nobody", 65534, 65534, "/nonexistent"))


def dev(view: View) -> Node:
    """Return `/dev`. A driver that can gives its tasks real device nodes instead.

    The administrator may name the machine's other devices here, too; they are not listed.
    """

    def other(name: str, who: Caller) -> Node:
        if not view.admin:
            raise no_entry(name)
        return host_device(Path("/dev"), name)

    return view.node(
        "dev",
        lambda: LiveDir(
            lambda: (),
            other,
            fixed={
                "null": Device(None),
                "zero": Device(bytes),
                "full": Device(bytes, refuse=ENOSPC),
                "random": Device(os.urandom),
                "urandom": Device(os.urandom),
                "fd": Link(lambda: "/proc/self/fd"),
                "stdin": Link(lambda: "/proc/self/fd/0"),
                "stdout": Link(lambda: "/proc/self/fd/1"),
                "stderr": Link(lambda: "/proc/self/fd/2"),
            },
            mode=0o755,
            owner=ROOT_OWNER,
        ),
    )


def etc(view: View) -> Node:
    """Return the generated files of `/etc`: the users are root, nobody and the view's own."""
    users = list(_MACHINE_USERS)
    if view.task is not None:
        user = view.task.spec.user
        if user.uid not in (0, 65534):
            users.append((user.name, user.uid, user.gid, f"/home/{user.name}"))

    def passwd() -> str:
        return "\n".join(f"{name}:x:{uid}:{gid}:{name}:{home}:/bin/sh" for name, uid, gid, home in users)

    def group() -> str:
        return "\n".join(f"{'nogroup' if name == 'nobody' else name}:x:{gid}:" for name, _, gid, _ in users)

    def hosts() -> str:
        net = view.task.spec.net if view.task is not None else "host"
        if net != "host":
            return hosts_file(net)
        return Path("/etc/hosts").read_text() if os.path.exists("/etc/hosts") else ""

    return view.node(
        "etc",
        lambda: Dir(
            {
                "passwd": Text(passwd),
                "group": Text(group),
                "hosts": Text(hosts),
                "nsswitch.conf": Text(lambda: "passwd: files\ngroup: files\nhosts: files dns"),
            },
            mode=0o755,
            owner=ROOT_OWNER,
        ),
    )
