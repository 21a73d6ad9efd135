"""Kill -9 of the server, an agent or the supervisor, again and again, at any moment under load: nothing that was
acknowledged is lost, nothing stays under way for ever, and every session remembers.
"""

import json
import os
import random
import signal
import socket
import threading
from pathlib import Path

import pytest
from serving import serving, supervisor

pytestmark = pytest.mark.root

HERE = Path(__file__).parent
SESSIONS = ("a", "b", "c")
SECONDS = 60.0
ENDED = ("completed", "failed", "cancelled")


class Client:
    """A connection to the RPC; `ask` is None once the server has gone."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.lines = self.read()
        self.kept = []
        self.count = 0

    def read(self):
        buffer = b""
        while data := self.socket.recv(1 << 16):
            *lines, buffer = (buffer + data).split(b"\n")
            yield from map(json.loads, lines)

    def ask(self, kind, **payload):
        self.count += 1
        try:
            self.socket.sendall(json.dumps({"id": self.count, "type": kind, "payload": payload}).encode() + b"\n")
            return self.next(lambda message: message.get("id") == self.count)
        except (ConnectionError, EOFError):
            return None

    def next(self, fits):
        """Return the next message that fits; what came before it is kept for another."""
        for at, message in enumerate(self.kept):
            if fits(message):
                return self.kept.pop(at)
        for message in self.lines:
            if fits(message):
                return message
            self.kept.append(message)
        raise EOFError

    def result(self, kind, **payload):
        reply = self.ask(kind, **payload)
        assert reply is not None and reply["ok"], reply
        return reply["result"]

    def close(self):
        self.socket.close()


def when_listening(path):
    """Connect as soon as there is somebody: a server that replaces itself tells nobody here."""
    pause = threading.Event()
    for _ in range(int(SECONDS / 0.01)):
        try:
            return Client(path)
        except (FileNotFoundError, ConnectionRefusedError):
            pause.wait(0.01)
    raise AssertionError("nobody listens")


class Load:
    """A client for each session that gives prompts until the server is gone, or `end`; notes what was acknowledged."""

    def __init__(self, path, acknowledged):
        self.path = path
        self.acknowledged = acknowledged
        self.stop = threading.Event()
        self.given = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self.give, args=(name,), daemon=True) for name in SESSIONS]
        for thread in self.threads:
            thread.start()

    def give(self, name):
        client = Client(self.path)
        try:
            while not self.stop.is_set():
                number = len(self.acknowledged)
                reply = client.ask("prompt", taskId=name, message=f"secret-{name} message {number}")
                if reply is None:
                    return
                assert reply["ok"], reply
                self.acknowledged[reply["result"]["turn"]["id"]] = name
                self.given.release()
                client.ask("get_state")
        finally:
            client.close()

    def until_given(self, count):
        for _ in range(count):
            assert self.given.acquire(timeout=SECONDS)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


def until_all_ended(path, acknowledged):
    """Wait for the end of every turn, told by the events; return all turns by id."""
    client = Client(path)
    try:
        client.result("subscribe")
        while True:
            turns, before = {}, None
            while page := client.result("history", limit=500, **({"before": before} if before else {}))["turns"]:
                turns |= {turn["id"]: turn for turn in page}
                before = page[-1]["id"]
            if all(turn["state"] in ENDED for turn in turns.values()):
                return turns
            client.next(lambda message: message.get("event") == "ended")
    finally:
        client.close()


def kill_agent(path, generator):
    client = Client(path)
    try:
        client.result("get_state")
    finally:
        client.close()
    agents = [pid for pid in Path("/proc").glob("[0-9]*") if is_agent(pid, path)]
    if agents:
        os.kill(int(generator.choice(agents).name), signal.SIGKILL)


def is_agent(process, path):
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        return b"/agent/small_agent.py" in words and str(path.parent).encode() in (process / "environ").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.long)])
def test_nothing_acknowledged_is_lost_whatever_is_killed(tmp_path, rounds):
    generator = random.Random(7)
    acknowledged = {}
    rpc = tmp_path / "rpc"
    settings = {
        "agent": ["/usr/bin/python3", "/agent/small_agent.py"],
        "binds": [f"bind -r #host{HERE} /agent"],
        "backoff_seconds": 0.01,
        "retries": 1000,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines.append(f'env = {{ NODE = "{tmp_path}" }}')
    (tmp_path / "sessions.toml").write_text("\n".join(lines))
    options = ("--sessions", str(tmp_path / "sessions.toml"), "--rpc", f"unix!{rpc}")
    victims = ["server", "agent", "supervisor", "server"]
    for number in range(rounds + 1):
        with serving(tmp_path, *options) as server:
            client = Client(rpc)
            for name in SESSIONS:
                client.result("create_or_open_task", taskId=name)
            client.close()
            if number == rounds:
                take_stock(rpc, acknowledged)
                continue
            load = Load(rpc, acknowledged)
            load.until_given(generator.randrange(1, 40))
            victim = victims[number % len(victims)] if rounds < 10 else generator.choice(victims)
            if victim == "agent":
                kill_agent(rpc, generator)
                load.until_given(5)
            elif victim == "supervisor":
                os.kill(supervisor(server.state), signal.SIGKILL)
            if victim == "agent":
                load.end()
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(SECONDS)
            load.end()


def take_stock(rpc, acknowledged):
    """Expect that all that was acknowledged is there and over, and that every session remembers its own secret only."""
    turns = until_all_ended(rpc, acknowledged)
    assert acknowledged.keys() <= turns.keys()
    assert all(turns[id]["session"] == name for id, name in acknowledged.items())
    bad = [turn for turn in turns.values() if turn["state"] == "failed" and turn["reason"] != "interrupted"]
    assert not bad, (rpc.parent / "log").read_text()
    assert sum(turn["state"] == "completed" for turn in turns.values()) > len(turns) / 2
    client = Client(rpc)
    client.result("subscribe")
    for name in SESSIONS:
        asked = client.result("prompt", taskId=name, message="secrets")["turn"]["id"]
        client.next(
            lambda message, asked=asked: message.get("event") == "ended" and message["payload"]["turn"] == asked
        )
        answer = client.result("history", taskId=name, limit=1)["turns"][0]
        assert (answer["id"], answer["output"]) == (asked, f"secret-{name}")
    client.close()


def test_a_server_whose_supervisor_is_killed_replaces_itself_and_its_sessions_go_on(tmp_path):
    settings = f'agent = ["/usr/bin/python3", "/agent/small_agent.py"]\nbinds = ["bind -r #host{HERE} /agent"]\n'
    (tmp_path / "sessions.toml").write_text(settings)
    rpc = tmp_path / "rpc"
    with serving(tmp_path, "--sessions", str(tmp_path / "sessions.toml"), "--rpc", f"unix!{rpc}") as server:
        client = Client(rpc)
        client.result("create_or_open_task", taskId="a")
        client.result("subscribe")
        client.result("prompt", taskId="a", message="my secret-a")
        client.next(lambda message: message.get("event") == "ended")
        os.kill(supervisor(server.state), signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionError)):
            client.next(lambda message: False)
        client.close()
        client = when_listening(rpc)
        client.result("subscribe")
        client.result("prompt", taskId="a", message="secrets")
        client.next(lambda message: message.get("event") == "ended")
        assert client.result("history")["turns"][0]["output"] == "secret-a"
        client.close()
