"""One server for all attempts, with a prisoner of each kind and a sibling whose secrets they are after."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prison import SECRET, Prison, Prisoner, new_cell
from serving import serving


@pytest.fixture(scope="session")
def prison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prison]:
    top = tmp_path_factory.mktemp("prison")
    top.chmod(0o755)
    bound = top / "bound"
    bound.mkdir(mode=0o755)
    (bound / "shadow").symlink_to("/etc/shadow")
    (bound / "above").symlink_to("../../../../../../../../etc")
    for name, owner in (("id-root", 0), ("id-daemon", 1)):
        (bound / name).write_bytes(Path("/usr/bin/id").read_bytes())
        os.chown(bound / name, owner, owner)
        (bound / name).chmod(0o6755)
    os.mknod(bound / "memory", 0o20666, os.makedev(1, 1))
    (bound / "memory").chmod(0o666)
    with serving(top) as served:
        assert served.mount
        sibling = new_cell(served.mount, f"cmd sleep {10**6}")
        home = served.state / "homes" / sibling.id
        (home / "secret").write_text(SECRET)
        (home / "secret").chmod(0o600)
        sibling.ctl("start")
        yield Prison(served, served.mount, sibling, sibling.main_pid(), bound)
        sibling.end()


@pytest.fixture(scope="session", params=["task's own uid", "uid 0"])
def prisoner(prison: Prison, request: pytest.FixtureRequest) -> Iterator[Prisoner]:
    """A task that is after the secrets; asked for uid 0, as the administrator's `user root` gives it."""
    lines = ["user root"] if request.param == "uid 0" else []
    cell = new_cell(prison.mount, *lines)
    cell.ctl(f"bind #host{prison.bound} /bound", file="ns/ctl")
    found = Prisoner(cell)
    try:
        yield found
    finally:
        found.release()


@pytest.fixture
def as_root(prisoner: Prisoner) -> bool:
    """Whether the prisoner of this test is uid 0."""
    return bool(prisoner.sees("return os.getuid() == 0"))
