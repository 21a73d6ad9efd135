"""What the browser tests share: one browser, one node for those that do not kill theirs."""

import pytest
from browser import Site, chromium


@pytest.fixture(scope="session")
def browser():
    with chromium() as one:
        yield one


@pytest.fixture
def site(tmp_path_factory):
    """A node of the test's own, not running yet."""
    one = Site(folder(tmp_path_factory))
    yield one
    one.wire.close()


@pytest.fixture(scope="session")
def shared_site(tmp_path_factory):
    one = Site(folder(tmp_path_factory))
    try:
        with one.running():
            yield one
    finally:
        one.wire.close()


@pytest.fixture
def served(shared_site):
    """A node that runs, and has sessions of other tests too; its wire is whole."""
    yield shared_site
    shared_site.wire.mend()


def folder(factory):
    top = factory.mktemp("site")
    top.chmod(0o755)
    return top
