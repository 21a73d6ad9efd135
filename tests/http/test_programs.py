"""Programs over HTTP: started, typed to, ended; errors are those of the task's own files."""

from webkit import run


def test_program_is_started_watched_and_ended(tmp_path):
    async def test(web):
        status, _, made = await web.ask("POST", "/api/programs", {"argv": ["/bin/echo", "a b", "c\nd"]})
        assert status == 201 and made["argv"] == ["/bin/echo", "a b", "c\nd"] and made["status"] == "running"
        assert await web.get("/api/programs") == [made]
        assert (await web.ask("POST", f"/api/programs/{made['id']}/kill", {"signal": "HUP"}))[0] == 204
        shown = await web.get(f"/api/programs/{made['id']}")
        assert (shown["status"], shown["exitcode"]) == ("exited", 129)
        status, _, answer = await web.ask("POST", f"/api/programs/{made['id']}/kill")
        assert (status, answer["error"]["code"]) == (409, "ESRCH")

    run(test, tmp_path)


BAD = ({}, {"argv": []}, {"argv": ["x"], "pty": [0, 80]}, {"argv": ["x"], "session": "none"}, {"argv": [1]})


def test_program_that_cannot_start_leaves_nothing(tmp_path):
    async def test(web):
        for body in BAD:
            assert (await web.ask("POST", "/api/programs", body))[0] in (400, 404), body
        assert await web.get("/api/programs") == []
        for method, path in (("GET", "7"), ("GET", "x"), ("POST", "7/input")):
            assert (await web.ask(method, f"/api/programs/{path}"))[0] == 404

    run(test, tmp_path)


def test_shell_of_a_session_runs_as_its_user(tmp_path):
    async def test(web):
        await web.ask("POST", "/api/sessions", {"id": "a", "run": ["/bin/cat"]})
        _, _, made = await web.ask("POST", "/api/programs", {"argv": ["/bin/sh"], "session": "a"})
        assert made["user"] == "pw-a"
        assert await web.get(f"/fs/task/{made['id']}/cwd") == b"/home/pw-a/work\n"

    run(test, tmp_path)
