"""A browser, a server that can be killed, and a wire between them that can be cut."""

import json
import os
import re
import select
import socket
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest
from serving import serving

CHROMIUM = "/usr/bin/chromium"
SECONDS = 15
WATCH = """window.shown = {};
new MutationObserver(() => {
  for (const article of document.querySelectorAll("article")) {
    const answers = (window.shown[article.dataset.task] ??= []);
    const answer = article.querySelector(".answer")?.textContent ?? "";
    if (answers.at(-1) !== answer) answers.push(answer);
  }
}).observe(document, { subtree: true, childList: true, characterData: true });"""


class Wire:
    """Passes connections on to `port`; `cut` drops those there are and refuses others until `mend`."""

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._clients = set()
        self._broken = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._connected, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _connected(self, client):
        self._clients.add(client)
        with client, suppress(OSError):
            if not self._broken:
                with socket.create_connection(("127.0.0.1", self._target)) as server:
                    other = {client: server, server: client}
                    while True:
                        for end in select.select(list(other), [], [])[0]:
                            data = end.recv(65536)
                            if not data:
                                raise ConnectionError
                            other[end].sendall(data)
        self._clients.discard(client)

    def cut(self):
        self._broken = True
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def mend(self):
        self._broken = False

    def close(self):
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SECONDS)
        self._listener.close()


class Site:
    """A served node with its wire; what its sessions' commands answer is written by the tests."""

    def __init__(self, top):
        self.top = top
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.wire = Wire(self._port)
        self.url = f"http://127.0.0.1:{self.wire.port}"
        self.served = None

    @contextmanager
    def running(self):
        """Serve until the block ends, or the server is killed in it."""
        with serving(self.top, "--http", f"tcp!127.0.0.1!{self._port}") as self.served:
            self.token = (self.served.state / "token").read_text().strip()
            yield self

    def kill(self):
        self.served.process.kill()
        self.served.process.wait()

    def ask(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        headers = {"authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.loads(answer.read() or b"null")

    def until(self, path, holds):
        """Return what `path` answers as soon as `holds(answer)`: other processes leave no event here."""
        deadline = time.monotonic() + SECONDS
        while not holds(answer := self.ask("GET", path)):
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)
        return answer

    def gated(self, name):
        """Open a session whose command answers what is written to the gate that a prompt names."""
        run = ["/bin/sh", "-c", "read gate; exec cat /tmp/$gate"]
        return self.ask("POST", "/api/sessions", {"id": name, "run": run})

    def gate(self, name):
        """Make a gate, and return what opens it for writing once somebody reads."""
        path = self.served.state / "tmp" / name
        os.mkfifo(path)
        path.chmod(0o666)
        return lambda: open(eventually(lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK)), "wb", buffering=0)


def eventually(call):
    """Return what `call()` returns as soon as it no longer raises OSError: other processes leave no event here."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return call()
        except OSError:
            assert time.monotonic() < deadline, "too late"
            time.sleep(0.02)


def sync_api():
    return pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")


@contextmanager
def chromium():
    """A headless browser. Skips the test where there is none."""
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"needs {CHROMIUM}")
    with sync_api().sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visitor(browser, site, place="", **options):
    """A page that the site knows, at `place`.

    It must not complain of anything but lost connections, and every answer it ever showed must be a beginning of what
    it shows in the end: nothing twice, nothing out of order.
    """
    context = browser.new_context(**options)
    page = context.new_page()
    page.add_init_script(WATCH)
    page.set_default_timeout(SECONDS * 1000)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.goto(f"{site.url}/?token={site.token}")
    page.goto(f"{site.url}/#/{place}")
    page.wait_for_selector("[data-link=live]")
    yield page
    for answers in page.evaluate("Object.values(window.shown)"):
        assert all(answers[-1].startswith(answer) for answer in answers), answers
    context.close()
    assert [each for each in complaints if "net::ERR" not in each and "Failed to load" not in each] == []


def ask(page, message):
    page.fill("#prompt", message)
    page.press("#prompt", "Enter")


def turn(page, state):
    """Wait until the page shows the newest prompt in a state; return what it shows as its answer."""
    article = page.locator("article").last
    sync_api().expect(article).to_have_attribute("data-state", state, timeout=SECONDS * 1000)
    answer = article.locator(".answer")
    return answer.text_content() if answer.count() else ""


def shows(page, text):
    """Wait until the newest answer is exactly `text`."""
    answer = page.locator("article").last.locator(".answer")
    sync_api().expect(answer).to_have_text(text, timeout=SECONDS * 1000)


def prompts(page, count):
    """Wait until the page shows that many prompts."""
    sync_api().expect(page.locator("article")).to_have_count(count, timeout=SECONDS * 1000)


def screen(page, pattern):
    """Wait until the terminal shows what the regular expression means."""
    rows = page.locator(".xterm-rows")
    sync_api().expect(rows).to_contain_text(re.compile(pattern), timeout=SECONDS * 1000)
    return rows.text_content()
