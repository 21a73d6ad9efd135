"""What a namespace costs with 1 and with 10,000 binds, in one run.

    python benchmarks/namespace.py [--binds 10000] [--repeat 5]

CPU time per operation, the best of the repeats. The ratios are what counts: a fork shares the table and a lookup goes
down a trie, so neither may grow with the number of binds (target: at most 1.5, which leaves room for caches).
The last table sets a walk through a bind against the same walk in the tree itself.
"""

import argparse
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from ns.namespace import Namespace  # noqa: E402
from ns.script import dump, run  # noqa: E402
from vfs.inline import start  # noqa: E402
from vfs.memory import MemoryTree  # noqa: E402
from vfs.node import ROOT, Node  # noqa: E402
from vfs.walk import walk  # noqa: E402

TARGET = 1.5


class Trees:
    """The devices of a benchmark: one memory tree."""

    admin = True

    def __init__(self, root: Node) -> None:
        self.root = root

    def allowed(self, name: str) -> bool:
        return True

    def per_view(self, name: str) -> bool:
        return False

    async def device(self, name: str) -> Node:
        return self.root


def inline(coro: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that does not wait, as a server does."""
    return start(coro)


def cost(work: Callable[[], object], *, repeat: int, count: int) -> float:
    """Return the least CPU seconds per call over the repeats."""
    best = float("inf")
    for _ in range(repeat):
        began = time.process_time()
        for _ in range(count):
            work()
        best = min(best, time.process_time() - began)
    return best / count


def namespace(trees: Trees, binds: int) -> Namespace:
    """Return a namespace with that many binds, spread over directories of a hundred."""
    ns = Namespace(trees, label=f"bench {binds}")
    for n in range(binds):
        inline(ns.bind("#mem/d", f"/n/{n // 100}/{n % 100}", writer=ns, who=ROOT))
    return ns


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binds", type=int, default=10_000)
    options.add_argument("--repeat", type=int, default=5)
    args = options.parse_args()

    tree = MemoryTree(label="bench")
    inner = inline(inline(tree.root.mkdir("d", 0o755, ROOT)).mkdir("e", 0o755, ROOT))
    inline(inner.create("f", 1, 0o644, ROOT))[1].close()
    trees = Trees(tree.root)
    one, many = namespace(trees, 1), namespace(trees, args.binds)

    def replay(ns: Namespace) -> None:
        inline(run(dump(ns.table), Namespace(trees, label="replay"), writer=ns, who=ROOT))

    def change(ns: Namespace) -> None:
        inline(ns.bind("#mem/d", "/n/0/new", writer=ns, who=ROOT))
        inline(ns.unbind("/n/0/new", writer=ns, who=ROOT))

    rows: list[tuple[str, Callable[[Namespace], object], int]] = [
        ("fork", lambda ns: ns.fork(trees, label="child"), 2_000),
        ("walk to a mountpoint", lambda ns: inline(walk(ns.root, "/n/0/0", ROOT)), 2_000),
        ("walk to a file below it", lambda ns: inline(walk(ns.root, "/n/0/0/e/f", ROOT)), 2_000),
        ("bind and unbind", change, 500),
    ]
    console = Console()
    table = Table("operation", "us, 1 bind", f"us, {args.binds:,} binds", "ratio", "target", title="namespace")
    for name, work, count in rows:
        few, lots = (cost(partial(work, ns), repeat=args.repeat, count=count) for ns in (one, many))
        ratio = lots / few
        mark = "" if ratio <= TARGET else " missed"
        table.add_row(name, f"{few * 1e6:.2f}", f"{lots * 1e6:.2f}", f"{ratio:.2f}", f"{TARGET}{mark}")
    console.print(table)

    whole = cost(lambda: replay(many), repeat=1, count=1)
    through = cost(lambda: inline(walk(one.root, "/n/0/0/e/f", ROOT)), repeat=args.repeat, count=2_000)
    direct = cost(lambda: inline(walk(tree.root, "/d/e/f", ROOT)), repeat=args.repeat, count=2_000)
    table = Table("operation", "us", "ratio", title="against the tree itself")
    table.add_row("walk d/e/f in the tree", f"{direct * 1e6:.2f}", "1")
    table.add_row("walk n/0/0/e/f through a bind", f"{through * 1e6:.2f}", f"{through / direct:.2f}")
    table.add_row(f"dump and replay, per bind of {args.binds:,}", f"{whole / args.binds * 1e6:.2f}", "")
    console.print(table)


if __name__ == "__main__":
    main()
