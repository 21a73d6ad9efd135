"""Memory per idle task: ten thousand tasks that were made and never started.

    python benchmarks/idle.py [--count N]

The server's proportional set size before and after, divided by the tasks; beside it the memory of an idle process
(`sleep`), which is what one would pay for a task that had been started to wait.
"""

import argparse
import subprocess

from serving import resident_bytes, serving, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="tasks")
    count = parser.parse_args().count
    with serving() as server:
        new = server.mount / "task/new"
        for _ in range(200):
            new.read_text()
        before = resident_bytes(server.pid)
        for _ in range(count):
            new.read_text()
        each = (resident_bytes(server.pid) - before) / count
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        process = resident_bytes(sleeper.pid)
        sleeper.kill()
    rows = [
        ("idle task, in the server", f"{each:.0f}", "1.00"),
        ("sleeping process", f"{process}", f"{each / process:.4f}"),
    ]
    table(f"idle: {count} tasks", ("what", "bytes", "task / this"), rows)


if __name__ == "__main__":
    main()
