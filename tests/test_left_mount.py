"""A mount that no server stands behind any more must not keep the next one from starting."""

import errno
import os

import pytest
from serving import end_all, serving


@pytest.mark.root
def test_a_mount_that_died_with_its_supervisor_is_replaced(tmp_path):
    with serving(tmp_path) as served:
        end_all(served.process, served.state)
        with pytest.raises(OSError) as info:
            os.stat(tmp_path / "mnt" / "task")
        assert info.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with serving(tmp_path):
        assert "new" in os.listdir(tmp_path / "mnt" / "task")
