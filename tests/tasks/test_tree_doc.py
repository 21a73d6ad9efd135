"""docs/tree.md and the served tree say the same: every name and verb is in both, in the same order."""

import re
from pathlib import Path

import trio
from tasks_household import household

from tasks.caps import KINDS

PAGE = (Path(__file__).parents[2] / "docs/tree.md").read_text()


def table(heading, which=0):
    """Return the first column of the tables in a section, the code spans' first words."""
    section = re.split(r"^#+ ", PAGE.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    rows = tables[which].splitlines()[2:]
    return [re.match(r"\| `([^` ]+)", row)[1] for row in rows]


def test_the_page_names_what_the_tree_serves(tmp_path):
    async def main():
        async with household(tmp_path) as node:
            id = await node.new()
            assert table("## `/task`")[:-1] == (await node.ls("/task", task=id))[:4]
            assert table("## `/task/ID`") == await node.ls(f"/task/{id}")
            assert table("### `ns`") == await node.ls(f"/task/{id}/ns")
            assert table("### `ctl`") == await verbs(node, f"/task/{id}/ctl")
            assert table("### `ns`", 1) == await verbs(node, f"/task/{id}/ns/ctl")
            assert table("### `fd`", 1) == await verbs(node, f"/task/{id}/fd/1ctl")
            assert table("## `/sessions`")[:-1] == (await node.ls("/sessions"))[:3]
            assert table("## `/sessions`", 1) == await verbs(node, "/sessions/ctl")
            await node.echo("open a run /bin/cat", "/sessions/ctl")
            shown = await node.ls("/sessions/a")
            assert table("### `/sessions/ID`") == ["session.json", *shown]
            assert table("### `/sessions/ID`", 1) == await verbs(node, "/sessions/a/ctl")
            assert table("## `/cap`") == list(KINDS) == await node.ls("/cap/new")

    trio.run(main)


async def verbs(node, path):
    lines = (await node.cat(path)).splitlines()
    return [line.split()[0] for line in lines if not line.startswith("#")]
