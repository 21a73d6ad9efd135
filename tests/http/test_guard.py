"""Who may ask: tokens, names, origins, bodies, and what answers allow a browser."""

import pytest
from webkit import TOKEN, run

from wanixfs.http.guard import MAX_BODY, host_name


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"cookie": "wanixfs=1"}]
)
@pytest.mark.parametrize("path", ["/api/sessions", "/fs/", "/metrics", "/api/events", "/nothing"])
def test_nothing_without_the_token(tmp_path, path, headers):
    async def test(web):
        status, _, data = await web.ask("GET", path, **({"authorization": None} | headers))
        assert status == 401 and data["error"]["code"] == "EACCES"

    run(test, tmp_path)


def test_life_is_told_to_everyone(tmp_path):
    async def test(web):
        status, _, data = await web.ask("GET", "/healthz", authorization=None)
        assert (status, data) == (200, b"ok\n")

    run(test, tmp_path)


def test_link_with_the_token_makes_a_browser_known(tmp_path):
    async def test(web):
        status, headers, _ = await web.ask("GET", f"/?token={TOKEN}", authorization=None)
        assert status == 303 and headers["location"] == "/"
        cookie, *attributes = headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict"} <= set(attributes)
        assert TOKEN not in cookie
        status, headers, page = await web.ask("GET", "/", authorization=None, cookie=cookie)
        assert status == 200 and b"/static/app.js" in page
        status, _, page = await web.ask("GET", "/?token=wrong", authorization=None)
        assert status == 401 and b"/static/app.js" not in page
        status, headers, _ = await web.ask(
            "POST", "/login", f"token={TOKEN}".encode(), authorization=None, origin=f"http://{web.host}"
        )
        assert status == 303 and headers["set-cookie"].startswith(cookie)

    run(test, tmp_path)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example"])
def test_foreign_name_is_refused(tmp_path, host):
    async def test(web):
        status, _, _ = await web.ask("GET", "/api/sessions", host=host)
        assert status == 421

    run(test, tmp_path)


def test_host_without_its_port():
    assert [host_name(each) for each in ("A.b:1", "[::1]:80", "[::1]", "x", "")] == ["a.b", "::1", "::1", "x", ""]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-origin"}, 404),
        ({"origin": "same"}, 404),
    ],
)
def test_only_our_own_page_changes_something_by_cookie(tmp_path, headers, status):
    async def test(web):
        _, answer, _ = await web.ask("GET", f"/?token={TOKEN}", authorization=None)
        given = {"authorization": None, "cookie": answer["set-cookie"].split(";")[0]} | headers
        if given.get("origin") == "same":
            given["origin"] = f"http://{web.host}"
        assert (await web.ask("POST", "/api/sessions/none/stop", **given))[0] == status

    run(test, tmp_path)


def test_large_body_is_refused_before_it_is_read(tmp_path):
    async def test(web):
        async with web.client() as client:
            answer = await client.ask("POST", "/api/sessions", b"x", finish=False, content_length=str(MAX_BODY + 1))
            assert answer.status == 413

    run(test, tmp_path)


def test_body_that_never_ends_is_cut(tmp_path):
    async def test(web):
        async with web.client() as client:
            answer = await client.ask("POST", "/api/sessions", b"x" * (MAX_BODY + 1), transfer_encoding="chunked")
            assert answer.status >= 400
        assert web.sessions.records() == []

    run(test, tmp_path)


def test_answers_say_what_a_browser_may_do(tmp_path):
    async def test(web):
        _, headers, _ = await web.ask("GET", "/")
        assert "script-src 'self' 'sha256-" in headers["content-security-policy"]
        _, headers, _ = await web.ask("GET", "/api/sessions")
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]

    run(test, tmp_path)
