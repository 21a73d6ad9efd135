"""The namespace scripts of examples/profiles, through `wanixfs run` as their first lines say."""

import ast
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import ROOT, Served

pytestmark = pytest.mark.root

PROFILES = ROOT / "examples/profiles"


def run(served: Served, profile: str, *words: str, status: int = 0) -> str:
    done = served.run("run", "--namespace", str(PROFILES / f"{profile}.ns"), *words, status=status)
    return (done.stdout + done.stderr).decode()


def test_minimal_profile_is_a_shell_and_nothing_else(served: Served) -> None:
    shown = run(served, "minimal", "sh", "-c", "echo /* /bin/*; echo kept > ~/file; read x < ~/file; echo $x")
    top, kept = shown.splitlines()
    assert set(top.split()) <= {"/bin", "/bin/sh", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc"}
    assert "/bin/sh" in top.split() and kept == "kept"
    assert "not found" in run(served, "minimal", "ls", status=127)


def test_python_profile_runs_python_and_has_no_tasks(served: Served, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "data").write_text("21")
    program = "import json, os, ssl; print(2 * int(open('/data/data').read()), sorted(os.listdir('/')))"
    number, _, names = run(served, "python", "--bind", f"#host{tmp_path}:/data:r", "python3", "-c", program).partition(
        " "
    )
    assert number == "42"
    assert set(ast.literal_eval(names)) <= {"bin", "data", "dev", "etc", "home", "lib", "lib64", "proc", "usr"}


@contextmanager
def model() -> Iterator[int]:
    """Serve what an agent would ask, on the loopback of the host; yield the port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"an answer")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(not os.path.exists("/usr/bin/node"), reason="needs node in /usr")
def test_agent_profile_works_in_a_project_and_reaches_its_model_only(served: Served, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    project = tmp_path / "project"
    project.mkdir(mode=0o700)
    os.chown(project, 4321, 4321)
    with model() as port, model() as other:
        script = f"""
            const fs = require('fs');
            const get = url => fetch(url).then(r => r.text(), e => e.cause.code);
            (async () => {{
                const said = [await get('http://localhost:{port}/'), await get('http://127.0.0.1:{other}/')];
                said.push(fs.readFileSync('/task/self/status', 'utf8').trim());
                fs.writeFileSync('report', said.join(' ') + '\\n');
            }})();
        """
        words = ("--bind", f"#host{project}:/work:i", "--cwd", "/work", "--net", f"localhost:{port}")
        run(served, "agent", *words, "node", "-e", script)
    assert (project / "report").read_text() == "an answer ECONNREFUSED running\n"
    assert (project / "report").stat().st_uid == 4321


def test_run_takes_a_user_and_a_network(served: Served) -> None:
    assert served.out("run", "--user", "nobody", "id", "-un") == "nobody\n"
    inode = os.stat("/proc/self/ns/net").st_ino
    assert served.out("run", "--net", "host", "readlink", "/proc/self/ns/net") == f"net:[{inode}]\n"
    assert served.out("run", "--net", "none", "readlink", "/proc/self/ns/net") != f"net:[{inode}]\n"
    done = served.run("run", "--net", "nonsense", "true", status=125)
    assert b"HOST:PORT" in done.stderr


def test_script_that_cannot_be_run_is_refused_by_its_line(served: Served, tmp_path: Path) -> None:
    script = tmp_path / "bad.ns"
    for text, word in (("clear\n\nbind /none/such /x\n", b"line 3"), ("clear\nfrobnicate\n", b"line 2")):
        script.write_text(text)
        assert word in served.run("run", "--namespace", str(script), "true", status=125).stderr
    optional = "clear\n-bind /none/such /x\nbind -r /usr /usr\n-bind -r /lib64 /lib64\n-bind -r /lib /lib\n"
    script.write_text(optional)
    assert served.out("run", "--namespace", str(script), "/usr/bin/echo", "fine") == "fine\n"
