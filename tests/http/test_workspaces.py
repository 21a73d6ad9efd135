"""A session's folder: in step before and after a prompt and on demand, conflicts told, big ones with progress."""

import json

import pytest
from browser import ask, turn, visitor

pytestmark = pytest.mark.root


def test_prompt_finds_the_folder_and_leaves_its_work_there(served, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "input").write_text("from the host")
    run = ["/bin/sh", "-c", "cat > question; tr a-z A-Z < input > output; rm input"]
    served.ask("POST", "/api/sessions", {"id": "work", "run": run, "folder": str(folder)})
    task = served.ask("POST", "/api/sessions/work/task", {"message": "louder"})["id"]
    done = served.until(f"/api/tasks/{task}", lambda turn: turn["state"] in ("completed", "failed"))
    assert done["state"] == "completed", done
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "question": "louder",
        "output": "FROM THE HOST",
    }
    (folder / "output").write_text("the host's")
    (served.served.state / "homes/session.work/work/output").write_text("the session's")
    (line,) = served.ask("POST", "/api/sessions/work/sync")
    assert line.startswith("output.conflict-") and "changed on both sides" in line
    assert served.served.out("cat", "/sessions/work/conflicts") == line + "\n"
    kept = folder / line.split(" ")[0]
    assert (kept.read_text(), (folder / "output").read_text()) == ("the session's", "the host's")
    kept.unlink()
    assert served.ask("POST", "/api/sessions/work/sync") == []


def test_big_folder_shows_how_far_it_is_and_conflicts_are_shown(browser, served, tmp_path):
    folder = tmp_path / "project"
    for number in range(4000):
        path = folder / str(number % 50) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    with visitor(browser, served, "s/big") as page:
        served.ask("POST", "/api/sessions", {"id": "big", "run": ["/bin/sh", "-c", "find . -type f | wc -l"]})
        page.wait_for_selector("#prompt")
        served.ask("POST", "/api/sessions", {"id": "big", "folder": str(folder)})
        ask(page, "count")
        page.wait_for_selector("text=/syncing: [0-9]+ of 40[0-9]{2} files/")
        assert turn(page, "completed").strip() == "4000"
        page.wait_for_selector("text=syncing", state="detached")
        (folder / "1/1").write_text("the host's")
        (served.served.state / "homes/session.big/work/1/1").write_text("the session's")
        page.click("text=Sync")
        page.wait_for_selector(".notice:has-text('1/1.conflict-')")


def test_folder_that_is_gone_fails_the_prompt_and_says_why(served, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    served.ask("POST", "/api/sessions", {"id": "gone", "run": ["/bin/cat"], "folder": str(folder)})
    folder.rmdir()
    task = served.ask("POST", "/api/sessions/gone/task", {"message": "hello"})["id"]
    done = served.until(f"/api/tasks/{task}", lambda turn: turn["state"] in ("completed", "failed"))
    assert done["state"] == "failed" and "No such file" in done["reason"], json.dumps(done)
