"""A tree shown as another user's: who owns, makes and changes what in it."""

import os
from errno import EPERM, EXDEV
from functools import partial

import pytest
import trio

from vfs.conformance import check_tree
from vfs.memory import MemoryTree
from vfs.node import Caller, SetStat
from vfs.owned import NOBODY, Owned, Shift

OWNER, TASK, OTHER = Caller(1000, 1001), Caller(70001, 70002, frozenset({70002, 5})), Caller(33, 34)
SHIFT = Shift(from_uid=OWNER.uid, from_gid=OWNER.gid, uid=TASK.uid, gid=TASK.gid)


def owned() -> tuple[MemoryTree, Owned]:
    tree = MemoryTree(label="mem", uid=OWNER.uid, gid=OWNER.gid)
    return tree, Owned(tree.root, SHIFT)


async def owner_of(node) -> tuple[int, int]:
    st = await node.stat()
    return st.st_uid, st.st_gid


def test_files_of_the_owner_appear_as_the_tasks_and_new_ones_are_the_owners():
    async def main():
        tree, root = owned()
        made, handle = await root.create("made", os.O_WRONLY, 0o600, TASK)
        handle.close()
        directory = await root.mkdir("dir", 0o700, TASK)
        assert [await owner_of(node) for node in (root, made, directory)] == [(TASK.uid, TASK.gid)] * 3
        for name in ("made", "dir"):
            assert await owner_of(await tree.root.lookup(name, OWNER)) == (OWNER.uid, OWNER.gid)
            assert await owner_of(await root.lookup(name, TASK)) == (TASK.uid, TASK.gid)

    trio.run(main)


def test_files_of_third_owners_appear_as_nobodys():
    async def main():
        tree, root = owned()
        _, handle = await tree.root.create("other", os.O_WRONLY, 0o600, OTHER)
        handle.close()
        assert await owner_of(await root.lookup("other", TASK)) == (NOBODY, NOBODY)

    trio.run(main)


def test_owner_can_be_set_to_the_task_and_to_nobody_else():
    async def main():
        _, root = owned()
        await root.setstat(SetStat(uid=TASK.uid, gid=TASK.gid, mode=0o711), TASK)
        assert (await root.stat()).st_mode & 0o777 == 0o711
        for change in (SetStat(uid=0), SetStat(uid=OWNER.uid), SetStat(gid=5)):
            with pytest.raises(OSError) as refused:
                await root.setstat(change, TASK)
            assert refused.value.errno == EPERM

    trio.run(main)


def test_names_move_and_link_inside_the_tree_only():
    async def main():
        tree, root = owned()
        node, handle = await root.create("a", os.O_WRONLY, 0o600, TASK)
        handle.close()
        directory = await root.mkdir("dir", 0o700, TASK)
        await root.rename("a", directory, "b", 0, TASK)
        await root.link(node, "again", TASK)
        assert {entry.name for entry in await root.readdir(TASK)} == {"dir", "again"}
        for foreign in (tree.root, Owned(tree.root, Shift(from_uid=0, from_gid=0, uid=1, gid=1))):
            with pytest.raises(OSError) as refused:
                await root.rename("again", foreign, "c", 0, TASK)
            assert refused.value.errno == EXDEV

    trio.run(main)


def test_it_is_a_tree_like_any_other():
    tree = MemoryTree(label="mem", uid=os.geteuid(), gid=os.getegid())
    mine = Shift(from_uid=os.geteuid(), from_gid=os.getegid(), uid=os.geteuid(), gid=os.getegid())
    trio.run(partial(check_tree, Owned(tree.root, mine), who=Caller(os.geteuid(), os.getegid())))
