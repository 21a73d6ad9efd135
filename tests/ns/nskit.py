"""Small trees and devices for the namespace tests."""

import os
from errno import ENOENT

import trio

from ns.namespace import Namespace
from ns.table import Member, Origin
from vfs.memory import MemoryTree
from vfs.node import ROOT, Caller, is_dir
from vfs.walk import walk

USER = Caller(1000, 1000)


class Board:
    """The devices of one view: trees by name. Tasks may not name `#host`; `#task` is each view's own."""

    def __init__(self, trees=(), *, admin=True, forbidden=("host",), per_view=("task",)):
        self.trees = dict(trees)
        self.admin = admin
        self.forbidden = () if admin else forbidden
        self.private = per_view
        self.asked = []

    def allowed(self, name):
        return name not in self.forbidden

    def per_view(self, origin):
        return origin.device in self.private

    async def device(self, name):
        self.asked.append(name)
        try:
            return self.trees[name]
        except KeyError:
            raise OSError(ENOENT, f"no device {name}") from None


async def grow(node, content):
    """Fill a directory from nested dicts: bytes are files, str are symbolic links."""
    for name, what in content.items():
        if isinstance(what, dict):
            await grow(await node.mkdir(name, 0o755, ROOT), what)
        elif isinstance(what, str):
            await node.symlink(name, what, ROOT)
        else:
            _, handle = await node.create(name, os.O_WRONLY, 0o644, ROOT)
            await handle.write(what, 0)
            handle.close()


def planted(label, content):
    """Return the root of a new memory tree with this content."""
    tree = MemoryTree(label=label)

    async def fill():
        await grow(tree.root, content)

    trio.run(fill)
    return tree.root


def administrator(label="admin", **contents):
    """Return an empty namespace of the administrator whose devices hold these contents."""
    return Namespace(Board({name: planted(f"{label}/{name}", tree) for name, tree in contents.items()}), label=label)


def member(text, **flags):
    return Member(Origin.parse(text), **flags)


async def bind(ns, new, old, *, writer=None, who=ROOT, **how):
    await ns.bind(new, old, writer=writer or ns, who=who, **how)


async def unbind(ns, old, new=None, *, writer=None, who=ROOT):
    await ns.unbind(old, new, writer=writer or ns, who=who)


async def read(ns, path, who=ROOT):
    handle = await (await walk(ns.root, path, who)).open(os.O_RDONLY, who)
    try:
        return bytes(await handle.read(1 << 16, 0))
    finally:
        handle.close()


async def write(ns, path, data, who=ROOT):
    """Create or replace the file at `path`."""
    parent, _, name = path.rpartition("/")
    directory = await walk(ns.root, parent or "/", who)
    try:
        handle = await (await directory.lookup(name, who)).open(os.O_WRONLY | os.O_TRUNC, who)
    except OSError as error:
        if error.errno != ENOENT:
            raise
        _, handle = await directory.create(name, os.O_WRONLY, 0o644, who)
    try:
        await handle.write(data, 0)
    finally:
        handle.close()


async def ls(ns, path="/", who=ROOT):
    return [entry.name for entry in await (await walk(ns.root, path, who)).readdir(who)]


async def everything(node, who=ROOT, depth=0):
    """Return a tree as nested dicts of bytes."""
    assert depth < 64, "a tree without end"
    if not is_dir(await node.stat()):
        handle = await node.open(os.O_RDONLY, who)
        try:
            return bytes(await handle.read(1 << 16, 0))
        finally:
            handle.close()
    names = [entry.name for entry in await node.readdir(who)]
    assert len(names) == len(set(names))
    return {name: await everything(await node.lookup(name, who), who, depth + 1) for name in names}
