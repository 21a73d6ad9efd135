"""What every test shares: which tests run here, fixed seeds, and that a session leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")

MARK = "WANIXFS_TEST_SESSION"
"""Set in the environment of the session and so of every process a test starts, however deep."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long, at their full counts")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a temporary directory of its own: whatever stays in it, or mounted below it, a test left."""
    top = Path(tempfile.mkdtemp(prefix="wt-", dir=os.environ.get("TMPDIR")))
    top.chmod(0o1777)
    os.environ["TMPDIR"] = tempfile.tempdir = str(top)
    os.environ[MARK] = str(top)
    if not config.option.basetemp:
        config.option.basetemp = str(top / "t")


def why_no_mounts() -> str:
    """Return why tests that mount can't run here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root (mounts, namespaces, other uids)"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/fuse: {error.strerror}"
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_mounts = why_no_mounts()
    for item in items:
        if item.get_closest_marker("long") and not config.option.long:
            item.add_marker(pytest.mark.skip(reason="full counts: give --long"))
        if no_mounts and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=no_mounts))


def processes_of(mark: str) -> Iterator[str]:
    """Yield a line for every living process but this one that has `mark` in its environment or on its command line."""
    inherited = f"{MARK}={mark}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            ours = mark.encode() in line or inherited in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if ours and int(process.name) != os.getpid():
            yield f"{process.name} {line.replace(bytes(1), b' ').decode(errors='replace')}"


def mounts_below(top: str) -> list[str]:
    """Return the mount points below `top`, the innermost first."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(top + "/")][::-1]


def left_behind(top: str) -> list[str]:
    """Return one line for every process, mount and temporary file that the tests of this session left."""
    left = [f"process {line}" for line in processes_of(top)]
    left += [f"mount {point}" for point in mounts_below(top)]
    left += [f"file {entry.path}" for entry in os.scandir(top) if entry.name != "t"]
    return left


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    top = os.environ[MARK]
    left = left_behind(top)
    for line in processes_of(top):
        os.kill(int(line.split()[0]), signal.SIGKILL)
    for point in mounts_below(top):
        subprocess.run(["umount", "-l", point], check=False)
    shutil.rmtree(top, ignore_errors=True)
    if left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.section("left behind by the tests", red=True)
            for line in left:
                reporter.line(line, red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
