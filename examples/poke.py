#!/usr/bin/env python3
"""Run a program as a task with nothing but files: `examples/poke.py DIR CMD...`, where DIR is a tree's mount point.

Prints what the task writes as it comes, then how it ended; exits with its code.
"""

import json
import sys
from pathlib import Path


def main(tree: Path, *argv: str) -> int:
    task = tree / "task" / (tree / "task/new").read_text().strip()
    (task / "args").write_text("".join(f"{word}\0" for word in argv))
    (task / "ctl").write_text("label made-by=poke.py\n")
    (task / "ctl").write_text("start\n")
    with (task / "fd/1").open("rb", buffering=0) as output:
        while data := output.read(65536):
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
    code = int((task / "wait").read_text())
    kinds = [json.loads(line)["event"] for line in (task / "events").read_text().splitlines()]
    print(f"task {task.name}: {' -> '.join(kinds)}, exit code {code}, reason: {(task / 'reason').read_text().strip()}")
    return code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: poke.py DIR CMD...")
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
