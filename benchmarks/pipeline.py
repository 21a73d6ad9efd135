"""Three tasks in a pipeline, against the same pipeline in a shell: throughput, and what the server spends meanwhile.

python benchmarks/pipeline.py [--mebibytes N] [--rounds N]

dd (zeros) | cat | dd (nothing)
"""

import argparse
import statistics
import subprocess
import time

from serving import Server, cpu_seconds, serving, table


def by_tasks(server: Server, mebibytes: int) -> tuple[float, float, list[float]]:
    """Return the seconds taken, and the processor seconds of the three tasks, and of server and supervisor."""
    mount, ours = server.mount, (server.pid, server.supervisor())
    before = [cpu_seconds(pid) for pid in ours]
    ids = [(mount / "task/new").read_text().strip() for _ in range(3)]
    tasks = [mount / "task" / id for id in ids]
    commands = (f"dd if=/dev/zero bs=64k count={mebibytes * 16}", "cat", "dd of=/dev/null bs=64k")
    for task, command in zip(tasks, commands, strict=True):
        (task / "ctl").write_text(f"cmd {command}\n")
    for reader, writer in ((1, 0), (2, 1)):
        (tasks[reader] / "fd/0ctl").write_text(f"pipe {ids[writer]}/fd/1\n")
    start = time.perf_counter()
    for task in reversed(tasks):
        (task / "ctl").write_text("start\n")
    for task in tasks:
        if (code := (task / "wait").read_text()) != "0\n":
            raise RuntimeError(f"{task}: {code}")
    seconds = time.perf_counter() - start
    ours_spent = [cpu_seconds(pid) - earlier for pid, earlier in zip(ours, before, strict=True)]
    spent = 0
    for task in tasks:
        figures = dict(line.split() for line in (task / "stat/cpu").read_text().splitlines())
        spent += int(figures["user_usec"]) + int(figures["system_usec"])
        (task / "ctl").write_text("remove\n")
    return seconds, spent / 1e6, ours_spent


def by_shell(mebibytes: int) -> float:
    command = f"dd if=/dev/zero bs=64k count={mebibytes * 16} 2>/dev/null | cat | dd of=/dev/null bs=64k 2>/dev/null"
    start = time.perf_counter()
    subprocess.run(["/bin/sh", "-c", command], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = options.mebibytes
    with serving() as server:
        by_tasks(server, 16)
        shell, tasks, used, ours = [], [], 0.0, [0.0, 0.0]
        for _ in range(options.rounds):
            shell.append(by_shell(size))
            seconds, spent, ours_spent = by_tasks(server, size)
            tasks.append(seconds)
            used += spent
            ours = [total + each for total, each in zip(ours, ours_spent, strict=True)]
    fast, slow = statistics.median(shell), statistics.median(tasks)
    rows = [
        ("shell", f"{size / fast:.0f}", "1.00"),
        ("three tasks", f"{size / slow:.0f}", f"{fast / slow:.2f}"),
    ]
    table(f"pipeline of three, {size} MiB", ("what", "MiB/s", "rate / shell"), rows)
    server_share, supervisor_share = (each / used * 100 for each in ours)
    print(f"\n  of the pipeline's processor time: server {server_share:.2f} %, supervisor {supervisor_share:.2f} %")


if __name__ == "__main__":
    main()
