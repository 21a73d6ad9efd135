"""The page's modules are what is pinned, and all of them lie here: it works offline."""

import hashlib
import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "wanixfs/http/page"
PINNED = json.loads((PAGE / "vendor/vendor.json").read_text())


@pytest.mark.parametrize("name", PINNED)
def test_vendored_files_are_the_pinned_ones_with_their_licence(name):
    package = PINNED[name]
    assert set(package["sha256"]) == set(package["files"].values())
    assert "LICENSE" in package["files"]
    for file, digest in package["sha256"].items():
        assert hashlib.sha256((PAGE / "vendor" / file).read_bytes()).hexdigest() == digest


def test_nothing_else_is_vendored():
    known = {file for package in PINNED.values() for file in package["sha256"]} | {"vendor.json"}
    assert {path.name for path in (PAGE / "vendor").iterdir()} == known


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.*")), ids=lambda path: path.name)
def test_page_names_nothing_elsewhere(path):
    links = re.findall(r"""(?:src|href|from|import)\s*[=(]?\s*["'](https?:)?//""", path.read_text())
    assert links == []


def test_every_import_leads_to_a_file():
    mapped = json.loads(re.search(r'importmap">(.*?)</script>', (PAGE / "index.html").read_text(), re.DOTALL)[1])[
        "imports"
    ]
    for path in PAGE.glob("*.js"):
        for name in re.findall(r"""(?:from|import)\s*\(?["']([^"']+)["']""", path.read_text()):
            target = mapped.get(name, name)
            file = PAGE / target.removeprefix("/static/").removeprefix("./")
            assert file.exists(), (path.name, name)
