"""What the documents say of the program is held against the program."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from wanixfs.cli.app import COMMANDS, cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#:]+)\)")
COMMANDS_BY_NAME = {name: cli.get_command(click.Context(cli), name) or pytest.fail(name) for name in COMMANDS}
HEADINGS = ("**Chosen.**", "**Why.**", "**Costs.**", "**Think again if**")


def options() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS_BY_NAME.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                yield name, parameter.opts[-1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    dead = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_pages_exist(page: Path) -> None:
    named = re.findall(r"(?:`|^    (?:\$ )?)wanixfs ([a-z]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_described_in_the_manual(name: str) -> None:
    assert f"wanixfs {name}" in (ROOT / "docs/cli.md").read_text()


@pytest.mark.parametrize(("name", "option"), sorted(set(options())))
def test_option_is_described_in_the_manual(name: str, option: str) -> None:
    assert f"`{option}" in re.sub(r"`(-\w)`/`", "`", (ROOT / "docs/cli.md").read_text()), name


def test_every_decision_is_listed_and_complete() -> None:
    folder = ROOT / "docs/adr"
    index = (folder / "README.md").read_text()
    pages = sorted(folder.glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        assert f"({page.name})" in index
        text = page.read_text()
        assert all(heading in text for heading in HEADINGS), page.name
        assert text.startswith(f"# {page.name[:4]} ")


@pytest.mark.parametrize("script", ["scripts/run", "scripts/test", ".ci/run", "examples/tour.sh"])
def test_script_is_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


def test_service_unit_starts_a_command_that_exists() -> None:
    (line,) = re.findall(
        r"^ExecStart=\S+/wanixfs (.*)$", (ROOT / "packaging/wanixfs.service").read_text(), re.MULTILINE
    )
    name, *words = line.split()
    context = COMMANDS_BY_NAME[name].make_context(name, words, resilient_parsing=True)
    assert context.params["mount"]


def test_tests_that_the_security_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text())
    assert len(named) > 40
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).exists() or not re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert not missing
