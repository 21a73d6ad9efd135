"""The two commands that a newcomer types."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from serving import ROOT, SECONDS

RUN = ROOT / "scripts/run"


@pytest.mark.root
def test_run_once_walks_through_the_tree_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([RUN, "--once", tmp_path], capture_output=True, text=True, timeout=5 * SECONDS, check=False)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "# That was the whole interface."
    assert not os.path.ismount(tmp_path)
    assert list(Path(os.environ["TMPDIR"]).glob("wanixfs-*")) == []


@pytest.mark.root
def test_run_stays_mounted_until_it_is_interrupted(tmp_path: Path) -> None:
    with subprocess.Popen(
        [RUN, "mnt"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            assert running.stdout
            for line in running.stdout:
                if line.startswith("Ctrl-C"):
                    break
            assert (tmp_path / "mnt/task/new").exists()
        finally:
            os.killpg(running.pid, signal.SIGINT)
            assert running.wait(SECONDS) == 130
    assert not os.path.ismount(tmp_path / "mnt")


def test_run_says_how_it_is_used() -> None:
    done = subprocess.run([RUN, "--nonsense"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "run: usage: scripts/run [--once] [DIR]\n")


@pytest.mark.parametrize("script", ["scripts/run", "scripts/test", "scripts/lib.sh", ".ci/run"])
def test_script_can_be_parsed(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


def test_missing_packages_are_named_to_whom_cannot_install_them() -> None:
    script = f"source {ROOT}/scripts/lib.sh; id() {{ echo 1000; }}; need_packages no-such-command=some-package sh=dash"
    done = subprocess.run(["bash", "-euc", script, "setup"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "setup: please install: some-package  (Debian: sudo apt-get install some-package)\n"
