"""Trees that other 9P servers serve: mounted into a namespace, dialled as a capability, found by a posted name."""

import os
from errno import ECONNREFUSED, ENOENT, EPERM

import trio
from tasks_household import household, refused

from vfs.memory import MemoryTree
from vfs.ninep import address
from vfs.ninep.server import serve
from vfs.node import ROOT
from vfs.walk import walk


def run(tmp_path, test):
    async def main():
        tree = MemoryTree(label="elsewhere")
        _, handle = await tree.root.create("hello", os.O_WRONLY, 0o644, ROOT)
        await handle.write(b"from elsewhere\n", 0)
        handle.close()

        async def attach(uname, uid, aname, peer):
            return tree.root, ROOT

        where = f"unix!{tmp_path}/9p"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, [address.listen(address.parse(where))], attach)
            async with household(tmp_path) as node:
                await test(node, where)
            nursery.cancel_scope.cancel()
        os.unlink(tmp_path / "9p")

    trio.run(main)


def test_a_mount_is_part_of_the_namespace_and_of_its_dump(tmp_path):
    async def test(node, where):
        one, two = await node.new(), await node.new()
        await node.echo(f"mount {where} /far", f"/task/{one}/ns/ctl")
        assert await node.cat("/far/hello", task=one) == "from elsewhere\n"
        dump = await node.cat(f"/task/{one}/ns/dump")
        assert f"mount {where} /far" in dump
        await node.echo(dump, f"/task/{two}/ns/ctl")
        assert await node.cat("/far/hello", task=two) == "from elsewhere\n"
        far = await walk(node.root(one), "/far", ROOT)
        _, handle = await far.create("back", os.O_WRONLY, 0o644, ROOT)
        await handle.write(b"written\n", 0)
        handle.close()
        assert await node.cat("/far/back", task=two) == "written\n"
        await node.echo("unbind /far", f"/task/{one}/ns/ctl")
        await refused(ENOENT, node.cat("/far/hello", task=one))

    run(tmp_path, test)


def test_only_the_administrator_dials(tmp_path):
    async def test(node, where):
        id = await node.new()
        await refused(EPERM, node.echo(f"mount {where} /far", "/task/self/ns/ctl", task=id))
        cap = (await node.cat("/cap/new/9p", task=id)).strip()
        await refused(EPERM, node.echo(f"dial {where}", f"/cap/{cap}/ctl", task=id))

    run(tmp_path, test)


def test_a_posted_name_is_an_address(tmp_path):
    async def test(node, where):
        srv = await walk(node.root(), "/srv", ROOT)
        await srv.create("far", os.O_WRONLY, 0o600, ROOT)
        id = await node.new()
        await refused(ENOENT, node.echo("mount /srv/far /far", f"/task/{id}/ns/ctl"))
        await node.echo(where, "/srv/far")
        await node.echo("mount /srv/far /far", f"/task/{id}/ns/ctl")
        assert await node.cat("/far/hello", task=id) == "from elsewhere\n"

    run(tmp_path, test)


def test_a_dialled_capability_shows_the_tree(tmp_path):
    async def test(node, where):
        cap = (await node.cat("/cap/new/9p")).strip()
        await node.echo(f"dial {where}", f"/cap/{cap}/ctl")
        assert await node.cat(f"/cap/{cap}/mount/hello") == "from elsewhere\n"

    run(tmp_path, test)


def test_nobody_listening_is_an_errno(tmp_path):
    async def test(node, where):
        id = await node.new()
        await refused(ENOENT, node.echo(f"mount unix!{tmp_path}/none /far", f"/task/{id}/ns/ctl"))
        await refused(ECONNREFUSED, node.echo("mount tcp!127.0.0.1!1 /far", f"/task/{id}/ns/ctl"))
        assert "far" not in await node.ls("/", task=id)

    run(tmp_path, test)
