"""What the command line takes and what it says when it cannot: options, sizes, failures."""

import os
from errno import ECONNREFUSED, ENOENT, EPERM

import click
import pytest

from wanixfs.cli.failure import Failure, OutputGone, cause, describe, no_server
from wanixfs.cli.options import ASSIGNMENT, BIND, SIGNAL, SIZE, Bind
from wanixfs.cli.stdio import printable


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("/a:/b", "bind /a /b"),
        ("#host/srv/my files:/work:r", "bind -r '#host/srv/my files' /work"),
        ("/a:/b:ac", "bind -ac /a /b"),
    ],
)
def test_bind_option_becomes_a_bind_line(text: str, line: str) -> None:
    assert BIND.convert(text, None, None).line() == line


@pytest.mark.parametrize("text", ["", "/a", "/a:", ":/b", "/a:b", "/a:/b:x"])
def test_bind_option_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        BIND.convert(text, None, None)


def test_a_newline_cannot_smuggle_a_second_bind() -> None:
    assert Bind("/a\nunbind /", "/b").line() == "bind '/a\nunbind /' /b"


def test_assignment_keeps_later_equals_signs_and_refuses_newlines() -> None:
    assert ASSIGNMENT.convert("K=a=b", None, None) == ("K", "a=b")
    assert ASSIGNMENT.convert("K=", None, None) == ("K", "")
    for text in ("K", "=v", "K=a\nL=b"):
        with pytest.raises(click.BadParameter):
            ASSIGNMENT.convert(text, None, None)


def test_size_and_signal_speak_as_the_control_files_do() -> None:
    assert SIZE.convert("64M", None, None) == 64 << 20
    assert SIGNAL.convert("term", None, None) == SIGNAL.convert("15", None, None) == 15
    for kind, text in ((SIZE, "much"), (SIGNAL, "NONE"), (SIGNAL, "0")):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


def test_failure_of_a_path_names_it() -> None:
    assert describe(OSError(EPERM, "not yours", "/task/1/ctl")) == "/task/1/ctl: not yours"
    assert describe(OSError(EPERM, os.strerror(EPERM))) == "Operation not permitted"
    assert describe(ValueError("two\nlines")) == "two lines"
    assert describe(ValueError()) == "ValueError"


@pytest.mark.parametrize("number", [ENOENT, ECONNREFUSED])
def test_absent_server_names_the_command_that_starts_one(number: int) -> None:
    failure = no_server("unix!/s", OSError(number, ""))
    assert failure.message == "no server at unix!/s; start one with: wanixfs serve"
    assert "start one" not in no_server("unix!/s", OSError(EPERM, "")).message


def test_a_group_is_reported_by_its_most_telling_member() -> None:
    said = Failure("said")
    group = BaseExceptionGroup("", [OSError(ENOENT, ""), ExceptionGroup("", [said, OutputGone()])])
    assert cause(group) is said
    interrupt = KeyboardInterrupt()
    assert cause(BaseExceptionGroup("", [group, interrupt])) is interrupt


def test_what_could_steer_a_terminal_is_escaped() -> None:
    assert printable("naïve 名") == "naïve 名"
    assert printable("a\x1b]0;b\x07\n\udc80") == "a\\x1b]0;b\\x07\\n\\udc80"
