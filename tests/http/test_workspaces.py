"""A session's folder: in step before and after a prompt and on demand, conflicts told, big ones with progress."""

import json

import pytest
from browser import Site, ask, chromium, turn, visitor

pytestmark = pytest.mark.root


@pytest.fixture
def site(tmp_path_factory):
    top = tmp_path_factory.mktemp("site")
    top.chmod(0o755)
    one = Site(top)
    yield one
    one.wire.close()


def test_prompt_finds_the_folder_and_leaves_its_work_there(site):
    folder = site.top / "project"
    folder.mkdir()
    (folder / "input").write_text("from the host")
    with site.running():
        run = ["/bin/sh", "-c", "cat > question; tr a-z A-Z < input > output; rm input"]
        site.ask("POST", "/api/sessions", {"id": "a", "run": run, "folder": str(folder)})
        task = site.ask("POST", "/api/sessions/a/task", {"message": "louder"})["id"]
        done = site.until(f"/api/tasks/{task}", lambda turn: turn["state"] in ("completed", "failed"))
        assert done["state"] == "completed", done
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "question": "louder",
            "output": "FROM THE HOST",
        }
        (folder / "output").write_text("the host's")
        (site.served.state / "homes/session.a/work/output").write_text("the session's")
        (line,) = site.ask("POST", "/api/sessions/a/sync")
        assert line.startswith("output.conflict-") and "changed on both sides" in line
        assert site.served.out("cat", "/sessions/a/conflicts") == line + "\n"
        kept = folder / line.split(" ")[0]
        assert (kept.read_text(), (folder / "output").read_text()) == ("the session's", "the host's")
        kept.unlink()
        assert site.ask("POST", "/api/sessions/a/sync") == []


def test_big_folder_shows_how_far_it_is_and_conflicts_are_shown(site):
    folder = site.top / "project"
    for number in range(6000):
        path = folder / str(number % 50) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    with site.running(), chromium() as browser, visitor(browser, site, "s/a") as page:
        site.ask("POST", "/api/sessions", {"id": "a", "run": ["/bin/sh", "-c", "find . -type f | wc -l"]})
        page.wait_for_selector("#prompt")
        site.ask("POST", "/api/sessions", {"id": "a", "folder": str(folder)})
        ask(page, "count")
        page.wait_for_selector("text=/syncing: [0-9]+ of 60[0-9]{2} files/")
        assert turn(page, "completed").strip() == "6000"
        page.wait_for_selector("text=syncing", state="detached")
        (folder / "1/1").write_text("the host's")
        (site.served.state / "homes/session.a/work/1/1").write_text("the session's")
        page.click("text=Sync")
        page.wait_for_selector(".notice:has-text('1/1.conflict-')")


def test_folder_that_is_gone_fails_the_prompt_and_says_why(site):
    folder = site.top / "project"
    folder.mkdir()
    with site.running():
        site.ask("POST", "/api/sessions", {"id": "a", "run": ["/bin/cat"], "folder": str(folder)})
        folder.rmdir()
        task = site.ask("POST", "/api/sessions/a/task", {"message": "hello"})["id"]
        done = site.until(f"/api/tasks/{task}", lambda turn: turn["state"] in ("completed", "failed"))
        assert done["state"] == "failed" and "No such file" in done["reason"], json.dumps(done)
