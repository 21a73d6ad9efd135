"""The tree over HTTP: files, ranges, directories, streams, and what a GET must not do."""

import os

import pytest
from webkit import run


def fill(web, name, data):
    path = web.house.config.state / "tmp" / name
    path.write_bytes(data)
    return path


def test_file_is_served_whole_and_in_ranges(tmp_path):
    async def test(web):
        data = bytes(range(256)) * 4096
        fill(web, "data.bin", data)
        status, headers, body = await web.ask("GET", "/fs/tmp/data.bin")
        assert (status, body, headers["content-length"]) == (200, data, str(len(data)))
        assert headers["accept-ranges"] == "bytes"
        for asked, first, last in (("0-9", 0, 9), ("1000-", 1000, len(data) - 1), ("-5", len(data) - 5, len(data) - 1)):
            status, headers, body = await web.ask("GET", "/fs/tmp/data.bin", range=f"bytes={asked}")
            assert (status, body) == (206, data[first : last + 1])
            assert headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
        status, headers, _ = await web.ask("GET", "/fs/tmp/data.bin", range=f"bytes={len(data)}-")
        assert (status, headers["content-range"]) == (416, f"bytes */{len(data)}")
        status, _, body = await web.ask("GET", "/fs/tmp/data.bin", range="lines=1-2")
        assert (status, body) == (200, data)

    run(test, tmp_path)


def test_head_tells_size_and_sends_nothing(tmp_path):
    async def test(web):
        fill(web, "a.txt", b"hello")
        status, headers, body = await web.ask("HEAD", "/fs/tmp/a.txt")
        assert (status, headers["content-length"], body) == (200, "5", b"")

    run(test, tmp_path)


def test_directory_is_listed_as_json_and_as_html(tmp_path):
    async def test(web):
        fill(web, '<b>&".txt', b"")
        (web.house.config.state / "tmp/sub").mkdir()
        listing = await web.get("/fs/tmp/")
        assert sorted(entry["name"] for entry in listing) == ['<b>&".txt', "sub"]
        assert {entry["type"] for entry in listing} == {"file", "directory"}
        page = (await web.get("/fs/tmp/", accept="text/html")).decode()
        assert "<b>" not in page and "&lt;b&gt;&amp;" in page and 'href="sub/"' in page
        status, headers, _ = await web.ask("GET", "/fs/tmp")
        assert status == 307 and headers["location"].endswith("/fs/tmp/")

    run(test, tmp_path)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/fs/nothing", 404),
        ("/fs/tmp/a/b", 404),
        ("/fs/task/new", 405),
        ("/fs/seen/new", 405),
        ("/fs/cap/new/pipe", 405),
        ("/fs/tmp/a?offset=x", 400),
        ("/fs/%00", 404),
        ("/fs/../../etc/passwd", 404),
        ("/fs/" + "x/" * 3000, 414),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, path, status):
    async def test(web):
        fill(web, "a", b"1")
        got, _, answer = await web.ask("GET", path)
        assert got == status, answer
        assert answer["error"]["message"]
        assert list(web.house.service.tasks) == []

    run(test, tmp_path)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_tree_is_for_reading_only(tmp_path, method):
    async def test(web):
        path = fill(web, "a", b"1")
        assert (await web.ask(method, "/fs/tmp/a"))[0] == 405
        assert path.read_bytes() == b"1"

    run(test, tmp_path)


def test_names_that_are_not_text_are_reached(tmp_path):
    async def test(web):
        fill(web, os.fsdecode(b"caf\xe9 1"), b"found")
        assert await web.get("/fs/tmp/caf%E9%201") == b"found"
        assert "caf%E9%201" in (await web.get("/fs/tmp/", accept="text/html")).decode()

    run(test, tmp_path)


def test_no_file_runs_in_a_browser(tmp_path):
    async def test(web):
        for name in ("a.html", "a.svg", "a.js", "a.xhtml"):
            fill(web, name, b"<script>alert(1)</script>")
            _, headers, _ = await web.ask("GET", f"/fs/tmp/{name}")
            assert headers["content-type"] == "text/plain; charset=utf-8"
            assert headers["content-security-policy"].startswith("sandbox;")
            assert headers["x-content-type-options"] == "nosniff"

    run(test, tmp_path)


def test_output_streams_as_it_comes_and_ends_with_the_task(tmp_path):
    async def test(web):
        made = (await web.ask("POST", "/api/programs", {"argv": ["/bin/true"]}))[2]
        async with web.client() as client:
            answer = await client.ask("GET", f"/fs/task/{made['id']}/fd/1")
            web.driver.write(made["id"], 1, b"one")
            assert await answer.until("one") == "one"
            web.driver.write(made["id"], 1, b"two")
            assert await answer.until("two") == "two"
            assert (await web.get(f"/fs/task/{made['id']}/fd/1?offset=3&wait=0")) == b"two"
            web.driver.finish(made["id"], 0)
            assert await answer.body() == b""
        assert await web.get(f"/fs/task/{made['id']}/exitcode") == b"0\n"

    run(test, tmp_path)


def test_reader_that_leaves_is_let_go(tmp_path):
    async def test(web):
        made = (await web.ask("POST", "/api/programs", {"argv": ["/bin/true"]}))[2]
        spool = web.house.service.spool(web.house.service.tasks[int(made["id"])], 1)
        async with web.client() as client:
            answer = await client.ask("GET", f"/fs/task/{made['id']}/fd/1")
            web.driver.write(made["id"], 1, b"x")
            await answer.until("x")
            while not waiting(spool):
                await web.get("/healthz")  # the reader's turn
        while waiting(spool):
            await web.get("/healthz")  # the server's turn: it learns of a closed connection by reading it
        web.driver.finish(made["id"], 0)

    run(test, tmp_path)


def waiting(spool):
    return spool.changed._lot is not None and len(spool.changed._lot)
