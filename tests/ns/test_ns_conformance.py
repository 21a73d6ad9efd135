"""A tree keeps all its promises when it is reached through a namespace."""

import pytest
import trio
from nskit import administrator, bind

from ns.table import Order
from vfs.conformance import check_tree
from vfs.host import HostTree
from vfs.memory import MemoryTree
from vfs.node import ROOT
from vfs.walk import walk


async def check(ns, path):
    report = await check_tree(await walk(ns.root, path, ROOT), who=ROOT)
    report.check()
    assert not report.skipped


def holds_through_a_bind(root):
    ns = administrator()
    ns.devices.trees["x"] = root

    async def main():
        await bind(ns, "#x", "/n/x")
        await check(ns, "/n/x")

    trio.run(main)


def test_a_memory_tree_keeps_its_promises_through_a_bind():
    holds_through_a_bind(MemoryTree(label="m").root)


@pytest.mark.root
def test_a_host_tree_keeps_its_promises_through_a_bind(tmp_path):
    holds_through_a_bind(HostTree(tmp_path, label="h").root)


def test_a_tree_keeps_its_promises_below_a_union():
    ns = administrator(x={"of-x": {}}, y={"of-y": {}})

    async def main():
        await bind(ns, "#x", "/u")
        await bind(ns, "#y", "/u", order=Order.AFTER, create=True)
        await check(ns, "/u/of-x")
        await check(ns, "/u/of-y")

    trio.run(main)


def test_a_tree_keeps_its_promises_at_the_top_of_a_union_that_creates_there():
    ns = administrator(x={}, y={})

    async def main():
        await bind(ns, "#x", "/u", create=True)
        await bind(ns, "#y", "/u", order=Order.AFTER)
        await check(ns, "/u")

    trio.run(main)
