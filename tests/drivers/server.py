"""A server to be killed: drives tasks by commands on stdin, says what it did on stdout.

`python server.py STATE` reads lines `start ID SCRIPT`, `hold KEY` and answers "ok ..." to each.
"""

import os
import sys
from pathlib import Path

import trio

from tests.drivers.recorder import Recorder, launch, opened


async def main(state: Path) -> None:
    recorder = Recorder()
    async with opened(state, recorder) as driver:
        print("ready", driver.supervisor_pid, flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            verb, id, *rest = line.rstrip("\n").split(" ", 2)
            if verb == "start":
                spools = {1: state / f"{id}.out"}
                print("ok", await driver.start(launch(id, "sh", "-c", *rest, state=state, spools=spools)), flush=True)
            elif verb == "hold":
                read, write = os.pipe()
                os.write(write, b"kept")
                driver.vault.hold(id, [read, write])
                driver.vault.hold(f"{id}-brief", [read], grace=0.05)
                print("ok", len(await driver.vault.take("nothing")), flush=True)
            elif verb == "exited":
                await recorder.exit_of(id)
                print("ok", flush=True)


trio.run(main, Path(sys.argv[1]))
