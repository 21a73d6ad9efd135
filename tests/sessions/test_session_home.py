"""A session's home: mended where a kill has torn it, and left alone where it is not what an agent makes."""

import os

import pytest

from tasks.model import User
from tasks.sessions.home import SESSION_FILE, furnish, tidy

USER = User(name="pw-a", uid=os.geteuid(), gid=os.getegid(), home="session.a")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b'{"a":1}\n', b'{"a":1}\n'),
        (b'{"a":1}\n{"b', b'{"a":1}\n'),
        (b'{"never whole', b""),
        (b"x" * 200_000 + b"\n" + b"y" * 200_000, b"x" * 200_000 + b"\n"),
    ],
)
def test_a_torn_last_line_is_cut_off(tmp_path, before, after):
    (tmp_path / SESSION_FILE).write_bytes(before)
    assert tidy(tmp_path, USER) == len(before) - len(after)
    assert (tmp_path / SESSION_FILE).read_bytes() == after
    assert (tmp_path / "work").is_dir()


def test_what_leads_out_of_the_home_or_is_not_its_own_is_left_alone(tmp_path):
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.write_bytes(b"torn")
    (home / SESSION_FILE).symlink_to(outside)
    assert tidy(home, USER) == 0
    (home / SESSION_FILE).unlink()
    os.link(outside, home / SESSION_FILE)
    assert tidy(home, USER) == 0
    (home / SESSION_FILE).unlink()
    os.mkfifo(home / SESSION_FILE)
    assert tidy(home, USER) == 0
    assert outside.read_bytes() == b"torn"


def test_a_new_home_gets_a_copy_of_the_template(tmp_path):
    template, home = tmp_path / "template", tmp_path / "home"
    (template / ".pi/agent").mkdir(parents=True)
    (template / ".pi/agent/models.json").write_text("{}")
    home.mkdir()
    furnish(home, USER, template)
    assert (home / ".pi/agent/models.json").read_text() == "{}"
    assert home.stat().st_mode & 0o777 == 0o700 and (home / "work").is_dir()
