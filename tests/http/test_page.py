"""The page in a browser: whatever breaks between what works and who looks, it comes to show the truth.

The first five are the ways in which a web page and an agent came apart elsewhere: fast completion, poll error, tab
close, web restart, agent restart.
"""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from browser import ask, prompts, screen, shows, turn, visitor
from serving import supervisor

pytestmark = pytest.mark.root


def test_fast_completion_is_shown(browser, served):
    """A prompt that is over before anybody could look is shown as over."""
    with visitor(browser, served, "s/fast") as page:
        served.ask("POST", "/api/sessions", {"id": "fast", "run": ["/bin/cat"]})
        page.wait_for_selector("#prompt")
        for number in range(5):
            ask(page, f"message {number}")
            prompts(page, number + 1)
            assert turn(page, "completed") == f"message {number}"


def test_lost_connections_lose_nothing(browser, served):
    """What happens while requests fail is shown once they no longer do, and nothing twice."""
    served.gated("lost")
    gate = served.gate("g-lost")
    with visitor(browser, served, "s/lost") as page:
        ask(page, "g-lost")
        with gate() as pen:
            pen.write(b"one ")
            shows(page, "one ")
            served.wire.cut()
            page.wait_for_selector("[data-link=lost]")
            pen.write(b"two ")
            served.until("/api/sessions/lost", lambda state: state["tasks"][-1]["output"] == "one two ")
            served.wire.mend()
            shows(page, "one two ")
            served.wire.cut()
            page.wait_for_selector("[data-link=lost]")
            pen.write(b"three")
        served.until("/api/sessions/lost", lambda state: state["tasks"][-1]["state"] == "completed")
        served.wire.mend()
        assert turn(page, "completed") == "one two three"
        page.wait_for_selector("[data-link=live]")


def test_streams_cut_again_and_again_leave_no_gap_and_no_duplicate(browser, served):
    served.gated("cut")
    gate = served.gate("g-cut")
    with visitor(browser, served, "s/cut") as page:
        ask(page, "g-cut")
        text = ""
        with gate() as pen:
            for number in range(30):
                pen.write(f"{number} ".encode())
                text += f"{number} "
                if number % 10 == 5:
                    served.wire.cut()
                    page.wait_for_selector("[data-link=lost]")
                    served.wire.mend()
        assert turn(page, "completed") == text


def test_what_happens_before_the_stream_opens_is_shown(browser, served):
    """Between what the page has read and its first event lies a time: here a whole prompt."""
    served.ask("POST", "/api/sessions", {"id": "gap", "run": ["/bin/cat"]})
    asked = []

    def late(route):
        prompts(page, 0)
        page.wait_for_selector("#prompt")  # it has read the session
        asked.append(served.ask("POST", "/api/sessions/gap/task", {"message": "quick"})["id"])
        served.until(f"/api/tasks/{asked[0]}", lambda task: task["state"] == "completed")
        route.continue_()

    with visitor(browser, served, "s/gap") as page:
        page.route("**/api/events*", late, times=1)
        page.reload()
        assert turn(page, "completed") == "quick"
    assert len(asked) == 1


def test_events_that_the_record_holds_already_are_not_added_again(browser, served):
    """The stream begins before what the page has read: nothing is shown twice, not for a moment."""
    served.gated("again")
    gate = served.gate("g-again")
    task = served.ask("POST", "/api/sessions/again/task", {"message": "g-again"})["id"]

    def from_the_beginning(route):
        route.continue_(url=re.sub("since=[0-9]+", "since=0", route.request.url))

    with gate() as pen:
        pen.write(b"one ")
        served.until(f"/api/tasks/{task}", lambda task: task["output"] == "one ")
        with visitor(browser, served, "s/again") as page:
            page.route("**/api/events*", from_the_beginning)
            page.reload()
            page.wait_for_selector("[data-link=live]")
            shows(page, "one ")
            pen.write(b"two")
            shows(page, "one two")


def test_prompt_sent_over_a_broken_line_is_taken_once(browser, served):
    served.ask("POST", "/api/sessions", {"id": "once", "run": ["/bin/cat"]})
    with visitor(browser, served, "s/once") as page:
        page.wait_for_selector("#prompt")
        served.wire.cut()
        ask(page, "hello")
        page.wait_for_selector("[role=alert]")
        served.wire.mend()
        page.press("#prompt", "Enter")
        assert turn(page, "completed") == "hello"
        page.wait_for_selector("[role=alert]", state="detached")
    assert len(served.ask("GET", "/api/history?session=once")) == 1


def test_closed_tab_loses_nothing(browser, served):
    served.gated("tab")
    gate = served.gate("g-tab")
    with visitor(browser, served, "s/tab") as page:
        ask(page, "g-tab")
        turn(page, "working")
    with gate() as pen:
        pen.write(b"while nobody looked")
    served.until("/api/sessions/tab", lambda state: state["tasks"][-1]["state"] == "completed")
    with visitor(browser, served, "s/tab") as page:
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


def test_killed_agent_is_told_and_started_again(browser, served):
    agent = served.served.state / "tmp/small_agent.py"
    shutil.copy(Path(__file__).parent.parent / "sessions/small_agent.py", agent)
    agent.chmod(0o644)
    served.ask("POST", "/api/sessions", {"id": "agent", "agent": ["/usr/bin/python3", "/tmp/small_agent.py"]})
    with visitor(browser, served, "s/agent") as page:
        ask(page, "wait")
        shows(page, "waiting")
        task = served.ask("GET", "/api/sessions/agent")["agent_task"]
        served.ask("POST", f"/api/programs/{task}/kill", {"signal": "KILL"})
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


def test_terminal_types_and_goes_on_after_a_lost_connection(browser, served):
    served.ask("POST", "/api/sessions", {"id": "shell", "run": ["/bin/cat"]})
    with visitor(browser, served, "s/shell/terminal") as page:
        page.click("text=Open a shell")
        page.wait_for_selector(".xterm-helper-textarea", state="attached")
        screen(page, r"\$")
        page.keyboard.type("echo $((6*7)); id -un\n")
        screen(page, "42")
        screen(page, "pw-shell")
        served.wire.cut()
        page.wait_for_selector("[data-link=lost]")
        served.wire.mend()
        page.wait_for_selector("[data-link=live]")
        page.keyboard.type("echo again-$((7*7))\n")
        assert screen(page, "again-49").count("pw-shell") == 1, "nothing is shown twice"


def test_page_is_led_by_keys_and_fits_a_phone(browser, served):
    for name in ("one", "two"):
        served.ask("POST", "/api/sessions", {"id": name, "run": ["/bin/cat"]})
    with visitor(browser, served, "s/one") as page:
        for key, name in (("j", "two"), ("k", "one"), ("j", "two")):
            page.press("#prompt", "Escape")
            page.keyboard.press(key)
            page.wait_for_selector(f"h1:text-is('{name}')")
        page.press("#prompt", "Escape")
        page.keyboard.press("n")
        page.fill("dialog [name=id]", "three")
        page.fill("dialog [name=command]", "tr a-z A-Z")
        page.press("dialog [name=id]", "Enter")
        page.wait_for_selector("h1:text-is('three')")
        ask(page, "loud")
        assert turn(page, "completed") == "LOUD"
    with visitor(browser, served, "s/three", viewport={"width": 360, "height": 640}) as page:
        assert turn(page, "completed") == "LOUD"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.click("text=Sessions")
        page.click("nav >> text=one")
        page.wait_for_selector("h1:text-is('one')")


def test_namespace_and_resources_of_the_agent_are_shown(browser, served):
    served.gated("seen")
    gate = served.gate("g-seen")
    with visitor(browser, served, "s/seen") as page:
        ask(page, "g-seen")
        with gate():
            page.click("text=Namespace")
            page.wait_for_selector("pre:has-text('bind #task /task')")
            page.click("text=Resources")
            page.wait_for_selector("polyline", state="attached")  # a flat line has no height
