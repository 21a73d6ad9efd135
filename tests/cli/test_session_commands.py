"""`wanixfs session`: sessions from the command line, as a user has them."""

import json
import os
from pathlib import Path

import pytest
from serving import serving

AGENT = Path(__file__).parents[1] / "sessions/small_agent.py"


@pytest.fixture
def served(tmp_path):
    root = os.geteuid() == 0  # then tasks have roots of their own
    agent = "/agent/small_agent.py" if root else AGENT
    binds = [f"bind -r #host{AGENT.parent} /agent"] if root else []
    settings = f'agent = ["/usr/bin/python3", "{agent}"]\nbinds = {json.dumps(binds)}\n'
    (tmp_path / "sessions.toml").write_text(settings)
    with serving(tmp_path, "--sessions", str(tmp_path / "sessions.toml"), mount=os.geteuid() == 0) as server:
        yield server


def test_a_session_from_open_to_rm(served):
    assert json.loads(served.out("session", "open", "a", "--model", "m", "--json"))["state"] == "ready"
    assert served.out("session", "prompt", "a", "my", "secret-1") == "heard: my secret-1\n"
    assert served.out("session", "prompt", "a", stdin=b"secrets") == "secret-1\n"
    turn = json.loads(served.out("session", "prompt", "a", "--json", "hello"))
    assert (turn["state"], turn["output"]) == ("completed", "heard: hello")
    served.run("session", "open", "b", "--run", "/bin/cat")
    assert served.out("session", "prompt", "b", "x" * 10_000) == "x" * 10_000 + "\n"
    served.run("session", "switch", "b")
    rows = [line.split() for line in served.out("session", "ls").splitlines()]
    assert [row[:2] for row in rows[1:]] == [["a", "ready"], ["*", "b"]]
    waiting = served.out("session", "prompt", "-d", "a", "wait").strip()
    served.run("session", "cancel", "a", waiting)
    assert json.loads(served.out("session", "stop", "a", "--json"))["state"] == "stopped"
    assert json.loads(served.out("session", "archive", "a", "--json"))["state"] == "archived"
    refused = served.run("session", "prompt", "a", "hello", status=1)
    assert b"busy" in refused.stderr.lower()
    assert "opened" in served.out("session", "log", "a")
    served.run("session", "rm", "a")
    assert [one["id"] for one in json.loads(served.out("session", "ls", "--json"))] == ["b"]


def test_a_task_that_fails_is_said_by_the_status(served):
    served.run("session", "open", "a", "--run", "/bin/false")
    failed = served.run("session", "prompt", "a", "hello", status=1)
    assert failed.stderr == b"wanixfs: failed: exit code 1\n"


def test_events_are_lines_from_any_number_on(served):
    served.run("session", "open", "a", "--run", "/bin/cat")
    served.run("session", "prompt", "a", "hello")
    with served.start("session", "events", "a", "--since", "0") as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(json.loads(line))
            if seen[-1]["event"] == "ended":
                break
        process.terminate()
    assert [row["event"] for row in seen if row["event"] not in ("state", "output")] == [
        "opened",
        "prompt",
        "began",
        "log",
        "ended",
    ]


def test_what_the_server_refuses_is_told_in_its_words(served):
    refused = served.run("session", "open", "A", status=1)
    assert b"not a session's name" in refused.stderr
    assert served.run("session", "prompt", "nobody", "hello", status=1).stderr
