"""Switching between sessions whose agents live, against starting the same agent anew for each switch.

    python benchmarks/sessions.py [--count N]

Both through the RPC, as a program on this machine does it: a switch is one request and its reply. The agent is the
small one of the tests, so the cold start is Python's; the ratio is to what one would wait if no agent stayed.
"""

import argparse
import json
import socket
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from serving import serving, table

AGENT = Path(__file__).parents[1] / "tests/sessions"


class Client:
    """A connection to the RPC, one request at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rwb")

    def ask(self, kind: str, **payload: object) -> dict[str, object]:
        self._file.write(json.dumps({"id": time.perf_counter_ns(), "type": kind, "payload": payload}).encode() + b"\n")
        self._file.flush()
        reply = json.loads(self._file.readline())
        if not reply["ok"]:
            raise RuntimeError(reply["error"])
        result: dict[str, object] = reply["result"]
        return result


def milliseconds(client: Client, kind: str, **payload: object) -> float:
    start = time.perf_counter()
    client.ask(kind, **payload)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="switches")
    count = parser.parse_args().count
    if not Path("/usr/bin/python3").exists():
        sys.exit("sessions.py: /usr/bin/python3 is needed")
    with TemporaryDirectory() as folder:
        rpc, settings = Path(folder, "rpc"), Path(folder, "sessions.toml")
        settings.write_text(
            'agent = ["/usr/bin/python3", "/agent/small_agent.py"]\n'
            f"binds = {json.dumps([f'bind -r #host{AGENT} /agent'])}\n"
        )
        with serving("--rpc", f"unix!{rpc}", "--sessions", str(settings)):
            warm, cold = measure(Client(rpc), count)
    slow = statistics.median(cold)
    shown = (("p50", statistics.median(warm)), ("p99", warm[int(count * 0.99)]), ("largest", warm[-1]))
    rows = [(name, f"{value:.2f}", f"{value / slow:.4f}") for name, value in shown]
    table("sessions: one switch", ("", "ms", "of a cold start"), [*rows, ("cold start", f"{slow:.2f}", "1")])


def measure(client: Client, count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of `count` switches between two agents that live, sorted, and of cold ones."""
    for name in "ab":
        client.ask("create_or_open_task", taskId=name)
    warm = sorted(milliseconds(client, "switch_task", taskId="ab"[number % 2]) for number in range(count))
    cold = []
    for number in range(max(5, count // 50)):
        client.ask("stop_task", taskId="ab"[number % 2])
        cold.append(milliseconds(client, "switch_task", taskId="ab"[number % 2]))
    return warm, cold


if __name__ == "__main__":
    main()
