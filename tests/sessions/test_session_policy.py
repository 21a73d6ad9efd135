"""The settings of sessions: every one can be set, and what makes no sense is refused by its name."""

from dataclasses import fields
from pathlib import Path

import pytest

from tasks.sessions.policy import Policy

PAGE = (Path(__file__).parents[2] / "docs/sessions.md").read_text()


def test_the_page_shows_every_setting_as_it_is_written():
    shown = PAGE.split("--sessions FILE` reads them", 1)[1].split("    ", 1)[1].split("\n## ", 1)[0]
    policy = Policy.from_toml("\n".join(line.strip() for line in shown.splitlines()))
    assert {line.split(" = ")[0].strip() for line in shown.splitlines() if " = " in line} == {
        field.name for field in fields(Policy)
    }
    assert policy.template == Path("/etc/wanixfs/session") and policy.agent[0] == "pi"


@pytest.mark.parametrize(
    "text",
    [
        "nonsense = 1",
        "agent = 'pi'",
        "agent = []",
        "max_agents = 1.5",
        "max_agents = true",
        "idle_seconds = -1",
        "idle_seconds = nan",
        "net = 1",
        "env = { A = 1 }",
        "binds = [1]",
        "idle_seconds = ",
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        Policy.from_toml(text)
