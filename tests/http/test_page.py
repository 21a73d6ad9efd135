"""The page in a browser: whatever breaks between what works and who looks, it comes to show the truth.

The first five are the ways in which a web page and an agent came apart elsewhere: fast completion, poll error, tab
close, web restart, agent restart.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest
from browser import Site, ask, chromium, prompts, screen, shows, turn, visitor
from serving import supervisor

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture
def site(tmp_path_factory):
    top = tmp_path_factory.mktemp("site")
    top.chmod(0o755)
    one = Site(top)
    yield one
    one.wire.close()


def test_fast_completion_is_shown(browser, site):
    """A prompt that is over before anybody could look is shown as over."""
    with site.running(), visitor(browser, site, "s/fast") as page:
        site.ask("POST", "/api/sessions", {"id": "fast", "run": ["/bin/cat"]})
        page.wait_for_selector("#prompt")
        for number in range(5):
            ask(page, f"message {number}")
            prompts(page, number + 1)
            assert turn(page, "completed") == f"message {number}"


def test_lost_connections_lose_nothing(browser, site):
    """What happens while requests fail is shown once they no longer do, and nothing twice."""
    with site.running():
        site.gated("a")
        gate = site.gate("g")
        with visitor(browser, site, "s/a") as page:
            ask(page, "g")
            with gate() as pen:
                pen.write(b"one ")
                shows(page, "one ")
                site.wire.cut()
                page.wait_for_selector("[data-link=lost]")
                pen.write(b"two ")
                site.until("/api/sessions/a", lambda state: state["tasks"][-1]["output"] == "one two ")
                site.wire.mend()
                shows(page, "one two ")
                site.wire.cut()
                page.wait_for_selector("[data-link=lost]")
                pen.write(b"three")
            site.until("/api/sessions/a", lambda state: state["tasks"][-1]["state"] == "completed")
            site.wire.mend()
            assert turn(page, "completed") == "one two three"
            page.wait_for_selector("[data-link=live]")


def test_streams_cut_again_and_again_leave_no_gap_and_no_duplicate(browser, site):
    with site.running():
        site.gated("a")
        gate = site.gate("g")
        with visitor(browser, site, "s/a") as page:
            ask(page, "g")
            text = ""
            with gate() as pen:
                for number in range(30):
                    pen.write(f"{number} ".encode())
                    text += f"{number} "
                    if number % 10 == 5:
                        site.wire.cut()
                        page.wait_for_selector("[data-link=lost]")
                        site.wire.mend()
            assert turn(page, "completed") == text


def test_prompt_sent_over_a_broken_line_is_taken_once(browser, site):
    with site.running():
        site.ask("POST", "/api/sessions", {"id": "a", "run": ["/bin/cat"]})
        with visitor(browser, site, "s/a") as page:
            page.wait_for_selector("#prompt")
            site.wire.cut()
            ask(page, "hello")
            page.wait_for_selector("[role=alert]")
            site.wire.mend()
            page.press("#prompt", "Enter")
            assert turn(page, "completed") == "hello"
            page.wait_for_selector("[role=alert]", state="detached")
        assert len(site.ask("GET", "/api/history")) == 1


def test_closed_tab_loses_nothing(browser, site):
    with site.running():
        site.gated("a")
        gate = site.gate("g")
        with visitor(browser, site, "s/a") as page:
            ask(page, "g")
            turn(page, "working")
        with gate() as pen:
            pen.write(b"while nobody looked")
        site.until("/api/sessions/a", lambda state: state["tasks"][-1]["state"] == "completed")
        with visitor(browser, site, "s/a") as page:
            assert turn(page, "completed") == "while nobody looked"


def test_killed_server_is_no_end(browser, site):
    """The next server goes on with the prompt, and the page that was open with the next server."""
    with site.running():
        site.gated("a")
        gate = site.gate("g")
        with visitor(browser, site, "s/a") as page:
            ask(page, "g")
            with gate() as pen:
                pen.write(b"before ")
                shows(page, "before ")
                site.kill()
                page.wait_for_selector("[data-link=lost]")
                pen.write(b"between ")
                with site.running():
                    shows(page, "before between ")
                    pen.write(b"after")
                    pen.close()
                    assert turn(page, "completed") == "before between after"
                    page.wait_for_selector("[data-link=live]")


def test_killed_agent_is_told_and_started_again(browser, site):
    with site.running():
        agent = site.served.state / "tmp/small_agent.py"
        shutil.copy(Path(__file__).parent.parent / "sessions/small_agent.py", agent)
        agent.chmod(0o644)
        site.ask("POST", "/api/sessions", {"id": "a", "agent": ["/usr/bin/python3", "/tmp/small_agent.py"]})
        with visitor(browser, site, "s/a") as page:
            ask(page, "wait")
            shows(page, "waiting")
            task = site.ask("GET", "/api/sessions/a")["agent_task"]
            site.ask("POST", f"/api/programs/{task}/kill", {"signal": "KILL"})
            turn(page, "failed")
            assert "interrupted" in page.inner_text("article .foot")
            ask(page, "hello again")
            prompts(page, 2)
            assert turn(page, "completed") == "heard: hello again"


def test_lost_supervisor_leaves_nothing_at_work(browser, site):
    """Killed with everything that ran: the next server says that the prompt failed, and works on."""
    with site.running():
        site.gated("a")
        gate = site.gate("g")
        with visitor(browser, site, "s/a") as page:
            ask(page, "g")
            with gate() as pen:
                pen.write(b"half")
                shows(page, "half")
                os.kill(supervisor(site.served.state), signal.SIGKILL)
                site.kill()
            with site.running():
                assert turn(page, "failed") == "half"


def test_terminal_types_and_goes_on_after_a_lost_connection(browser, site):
    with site.running():
        site.ask("POST", "/api/sessions", {"id": "a", "run": ["/bin/cat"]})
        with visitor(browser, site, "s/a/terminal") as page:
            page.click("text=Open a shell")
            page.wait_for_selector(".xterm-helper-textarea", state="attached")
            screen(page, r"\$")
            page.keyboard.type("echo $((6*7)); id -un\n")
            screen(page, "42")
            screen(page, "pw-a")
            site.wire.cut()
            page.wait_for_selector("[data-link=lost]")
            site.wire.mend()
            page.wait_for_selector("[data-link=live]")
            page.keyboard.type("echo again-$((7*7))\n")
            assert screen(page, "again-49").count("pw-a") == 1, "nothing is shown twice"


def test_page_is_led_by_keys_and_fits_a_phone(browser, site):
    with site.running():
        for name in ("one", "two"):
            site.ask("POST", "/api/sessions", {"id": name, "run": ["/bin/cat"]})
        with visitor(browser, site) as page:
            page.keyboard.press("j")
            page.wait_for_selector("h1:text-is('one')")
            page.press("#prompt", "Escape")
            page.keyboard.press("j")
            page.wait_for_selector("h1:text-is('two')")
            page.press("#prompt", "Escape")
            page.keyboard.press("n")
            page.fill("dialog [name=id]", "three")
            page.fill("dialog [name=command]", "tr a-z A-Z")
            page.press("dialog [name=id]", "Enter")
            page.wait_for_selector("h1:text-is('three')")
            ask(page, "loud")
            assert turn(page, "completed") == "LOUD"
        with visitor(browser, site, "s/three", viewport={"width": 360, "height": 640}) as page:
            assert turn(page, "completed") == "LOUD"
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.click("text=Sessions")
            page.click("nav >> text=one")
            page.wait_for_selector("h1:text-is('one')")


def test_namespace_and_resources_of_the_agent_are_shown(browser, site):
    with site.running():
        site.gated("a")
        gate = site.gate("g")
        with visitor(browser, site, "s/a") as page:
            ask(page, "g")
            with gate():
                page.click("text=Namespace")
                page.wait_for_selector("pre:has-text('bind #task /task')")
                page.click("text=Resources")
                page.wait_for_selector("polyline")
