"""The examples, run as their first lines say."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ROOT, SECONDS, Served, serving

pytestmark = pytest.mark.root
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("examples")
    top.chmod(0o755)
    served: Served
    with serving(top) as served:
        assert served.mount
        yield served.mount


def run(*words: str | Path, status: int = 0) -> list[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == status, done
    return done.stdout.splitlines()


def test_tour_finds_everything_as_it_says(tree: Path) -> None:
    assert run(EXAMPLES / "tour.sh", tree)[-1] == "# That was the whole interface."


def test_pipeline_counts_what_a_shells_pipeline_counts(tree: Path) -> None:
    expected = "ls /usr/bin | cut -c1 | sort | uniq -c | sort -rn | head -3"
    assert run(EXAMPLES / "pipeline.sh", tree) == run("sh", "-c", expected)


def test_namespaces_show_each_task_its_own(tree: Path) -> None:
    red, path, blue, masked = run(EXAMPLES / "namespaces.sh", tree)
    assert (red, blue, masked) == ("red", "blue", "no id")
    assert path.endswith("/id")


def test_sessions_remember_what_is_theirs(tree: Path) -> None:
    assert run(EXAMPLES / "sessions.sh", tree) == ["apples", "pears", "apples plums"]


def test_poke_prints_output_history_and_exit_code(tree: Path) -> None:
    first, last = run(sys.executable, EXAMPLES / "poke.py", tree, "sh", "-c", "echo poked; exit 3", status=3)
    assert first == "poked"
    assert "exit code 3" in last
    assert "started" in last


def test_makefile_builds_by_tasks_and_fails_as_they_fail(tree: Path) -> None:
    make = ("make", "-s", "-j2", "-f", EXAMPLES / "Makefile", f"TREE={tree}")
    assert run(*make) == ["25", "10000"]
    assert run(*make) == []
    (tree / "tmp/build/primes").unlink()
    (tree / "tmp/build/primes").mkdir()
    run(*make, "-W", f"{tree}/tmp/build/numbers", status=2)
    run(*make, "clean")


def test_examples_say_how_they_are_used(tree: Path) -> None:
    for script in EXAMPLES.glob("*.sh"):
        done = subprocess.run([script], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"usage: {script.name} DIR" in done.stderr
    assert run(sys.executable, EXAMPLES / "poke.py", status=1) == []


def test_wasi_module_writes_in_capitals_what_a_linux_task_prints(tree: Path) -> None:
    names = run(sys.executable, EXAMPLES / "wasi.py", tree)
    assert names == [name.upper() for name in run("ls", "/usr/bin")]
