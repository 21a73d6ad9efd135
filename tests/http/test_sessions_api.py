"""Sessions over HTTP: one record for what works and what is over, told without gap or duplicate."""

import json

import trio
from webkit import run, web


async def session(web, name="a", command="/bin/cat"):
    status, _, record = await web.ask("POST", "/api/sessions", {"id": name, "run": [command]})
    assert status == 201, record
    return record


async def prompt(web, message, name="a", **fields):
    status, _, task = await web.ask("POST", f"/api/sessions/{name}/task", {"message": message, **fields})
    assert status == 201, task
    return task["id"]


def events(text):
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_prompt_is_one_record_from_first_to_last(tmp_path):
    async def test(web):
        assert (await session(web))["state"] == "ready"
        task = await prompt(web, "hello")
        program = await web.started(1)
        web.driver.write(program, 1, b"hi")
        await web.until(lambda: web.sessions.turn(int(task)).output == "hi")
        working = await web.get(f"/api/tasks/{task}")
        assert (working["state"], working["output"]) == ("working", "hi")
        assert await web.get(f"/api/history/{task}") == working
        assert await web.get("/api/history") == []
        web.driver.finish(program, 0)
        await web.until(lambda: web.sessions.turn(int(task)).state.ended)
        done = await web.get(f"/api/tasks/{task}")
        assert (done["state"], done["code"], done["message"]) == ("completed", 0, "hello")
        assert await web.get("/api/history?session=a") == [done]
        (shown,) = (await web.get("/api/sessions/a"))["tasks"]
        assert shown == done

    run(test, tmp_path)


def test_what_never_was_is_unknown(tmp_path):
    async def test(web):
        for name in ("17", "x", "0" * 30):
            assert (await web.ask("GET", f"/api/tasks/{name}"))[::2] == (404, {"id": name, "state": "unknown"})

    run(test, tmp_path)


def test_same_key_is_the_same_prompt(tmp_path):
    async def test(web):
        await session(web)
        first = await prompt(web, "hello", key="k")
        assert await prompt(web, "hello", key="k") == first

    run(test, tmp_path)


def test_etag_saves_what_has_not_changed(tmp_path):
    async def test(web):
        await session(web)
        _, headers, _ = await web.ask("GET", "/api/sessions")
        status, again, body = await web.ask("GET", "/api/sessions", if_none_match=headers["etag"])
        assert (status, body, again["x-seq"]) == (304, b"", headers["x-seq"])
        await prompt(web, "hello")
        assert (await web.ask("GET", "/api/sessions", if_none_match=headers["etag"]))[0] == 200

    run(test, tmp_path)


def test_cancel_stop_archive_and_remove(tmp_path):
    async def test(web):
        await session(web)
        task = await prompt(web, "hello")
        await web.started(1)
        await web.until(lambda: web.sessions.turn(int(task)).state == "working")
        assert (await web.ask("POST", f"/api/tasks/{task}/cancel"))[0] == 200
        await web.until(lambda: web.sessions.turn(int(task)).state.ended)
        assert (await web.get(f"/api/tasks/{task}"))["state"] == "cancelled"
        assert (await web.ask("POST", f"/api/tasks/{task}/cancel"))[0] == 409
        assert (await web.ask("POST", "/api/sessions/a/stop"))[2]["state"] == "stopped"
        assert (await web.ask("POST", "/api/sessions/a/archive"))[2]["state"] == "archived"
        assert (await web.ask("POST", "/api/sessions/a/task", {"message": "x"}))[0] == 409
        assert (await web.ask("POST", "/api/sessions", {"id": "a"}))[::2][0] == 200
        assert (await web.ask("DELETE", "/api/sessions/a"))[0] == 204
        assert (await web.get("/api/sessions"))["sessions"] == []

    run(test, tmp_path)


def test_bad_requests_are_refused_and_change_nothing(tmp_path):
    async def test(web):
        for body in ({}, {"id": "BAD"}, {"id": 3}, {"id": "a", "colour": "red"}, {"id": "a", "run": [1]}, [], b"{"):
            status, _, answer = await web.ask("POST", "/api/sessions", body)
            assert status == 400 and answer["error"]["code"] == "EINVAL", body
        assert (await web.ask("POST", "/api/sessions/none/task", {"message": "x"}))[0] == 404
        await session(web)
        assert (await web.ask("POST", "/api/sessions/a/task", {"message": " "}))[0] == 400
        assert (await web.ask("GET", "/api/history?limit=0"))[0] == 400
        assert (await web.get("/api/sessions/a"))["tasks"] == []

    run(test, tmp_path)


def test_events_follow_on_without_gap_or_duplicate(tmp_path):
    async def test(web):
        await session(web)
        start = (await web.ask("GET", "/api/sessions"))[1]["x-seq"]
        task = await prompt(web, "hello")
        program = await web.started(1)
        seen = []
        async with web.client() as client:
            answer = await client.ask("GET", f"/api/events?since={start}")
            assert answer.headers["content-type"].startswith("text/event-stream")
            web.driver.write(program, 1, b"one")
            seen += events(await answer.until('"text": "one"'))
        web.driver.write(program, 1, b"two")  # while nobody listens
        await web.until(lambda: web.sessions.turn(int(task)).output == "onetwo")
        async with web.client() as client:
            answer = await client.ask("GET", f"/api/events?since={start}", last_event_id=str(seen[-1]["seq"]))
            web.driver.finish(program, 0)
            seen += events(await answer.until('"event": "ended"'))
        numbers = [event["seq"] for event in seen]
        assert numbers == list(range(int(start) + 1, numbers[-1] + 1))
        assert "".join(event["text"] for event in seen if event["event"] == "output") == "onetwo"

    run(test, tmp_path)


def test_who_is_behind_what_is_kept_is_told_to_read_anew(tmp_path):
    async def test(web):
        await session(web)
        web.sessions.chronicle.forget_happenings(0)
        last = web.sessions.chronicle.last_seq
        for since in ("0", str(last + 1000)):
            async with web.client() as client:
                answer = await client.ask("GET", f"/api/events?since={since}")
                assert f"event: reset\nid: {last}\n" in await answer.until("}\n\n")

    run(test, tmp_path)


def test_listener_that_leaves_is_let_go(tmp_path):
    async def test(web):
        changed = web.sessions.chronicle.changed
        async with web.client() as client:
            await (await client.ask("GET", "/api/events")).until("hello")
        while changed._lot is not None and len(changed._lot):
            await web.get("/healthz")  # the server's turn: it learns of a closed connection by reading it

    run(test, tmp_path)


def test_next_server_shows_the_same(tmp_path):
    async def main():
        with trio.fail_after(20):
            async with web(tmp_path) as first:
                await session(first)
                task = await prompt(first, "hello")
                program = await first.started(1)
                first.driver.write(program, 1, b"one")
                await first.until(lambda: first.sessions.turn(int(task)).output == "one")
                seq = (await first.ask("GET", "/api/sessions"))[1]["x-seq"]
                driver = first.driver
            async with web(tmp_path, driver) as second:
                assert (await second.get(f"/api/tasks/{task}"))["output"] == "one"
                async with second.client() as client:
                    answer = await client.ask("GET", "/api/events", last_event_id=seq)
                    second.driver.write(program, 1, b"two")
                    second.driver.finish(program, 0)
                    text = await answer.until('"event": "ended"')
                assert "".join(event["text"] for event in events(text) if event["event"] == "output") == "two"
                done = await second.get(f"/api/tasks/{task}")
                assert (done["state"], done["output"]) == ("completed", "onetwo")

    trio.run(main)


def test_figures_tell_of_tasks_and_sessions(tmp_path):
    async def test(web):
        await session(web)
        text = (await web.get("/metrics")).decode()
        assert 'wanixfs_sessions{state="ready"} 1.0' in text
        assert "process_resident_memory_bytes" in text

    run(test, tmp_path)
