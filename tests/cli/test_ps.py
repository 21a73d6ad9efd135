"""How `ps` lays out what the files of tasks say."""

import io

import pytest
from rich.console import Console

from wanixfs.cli.processes import Row, table


def make(**changed: object) -> Row:
    fields: dict[str, object] = {
        "id": 7,
        "parent": "",
        "type": "linux",
        "user": "t7",
        "status": "running",
        "exitcode": None,
        "args": ["sh", "-c", "echo 'a b'"],
    }
    return Row(**(fields | changed))  # type: ignore[arg-type]


def lines(*rows: Row, labels: bool = False, width: int = 200) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(table(list(rows), labels=labels, now=100.0))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("started", "exited", "age"),
    [(None, None, ""), (95, None, "00:05"), (0, 3661, "01:01:01"), (0, 90061, "1-01:01:01"), (200, None, "00:00")],
)
def test_time_is_how_long_it_has_run_or_ran(started: float | None, exited: float | None, age: str) -> None:
    times = {key: value for key, value in (("started", started), ("exited", exited)) if value is not None}
    assert make(times=times).age(100.0) == age


def test_table_shows_one_line_a_task_under_a_heading() -> None:
    head, line = lines(make(times={"started": 40.0}))
    assert head.split() == ["ID", "TYPE", "USER", "STATUS", "EXIT", "TIME", "COMMAND"]
    assert line.split(maxsplit=5) == ["7", "linux", "t7", "running", "01:00", """sh -c 'echo '"'"'a b'"'"''"""]


def test_labels_have_a_column_where_they_are_asked_for() -> None:
    head, line = lines(make(labels={"a": "1", "b": "2"}, exitcode=0), labels=True)
    assert "LABELS" in head
    assert "a=1,b=2" in line


def test_a_command_cannot_steer_the_terminal_nor_the_markup() -> None:
    _, line = lines(make(args=["\x1b[31m", "[red]"]))
    assert "\x1b" not in line
    assert "\\x1b[31m" in line
    assert "[red]" in line


def test_a_narrow_terminal_shortens_and_never_wraps() -> None:
    assert len(lines(make(args=["x" * 300]), width=60)) == 2
