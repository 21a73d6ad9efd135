"""One server for the tests of limits and live binds."""

from collections.abc import Iterator

import pytest
from serving import Served, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    top = tmp_path_factory.mktemp("isolation")
    top.chmod(0o755)
    with serving(top) as found:
        yield found
