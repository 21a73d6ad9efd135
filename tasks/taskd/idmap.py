"""User namespaces that say which owner a bind shows instead of which: what mount_setattr(2) takes for MOUNT_ATTR_IDMAP.

Nothing ever runs in one, beyond the moment in which it is made.
"""

import os
import signal

from tasks.taskd import syscalls

KEPT = 1024


class Owners:
    """The namespaces that were made, by what they map; the least recently used one goes first."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, int, int], int] = {}

    def namespace(self, from_uid: int, uid: int, from_gid: int, gid: int) -> int:
        """Return a descriptor, still ours, of one in which files of `from_uid` and `from_gid` are the others'.

        Only for a single-threaded caller that may write such maps (user_namespaces(7)).
        """
        key = (from_uid, uid, from_gid, gid)
        found = self._kept.pop(key, -1)
        self._kept[key] = _make(*key) if found < 0 else found
        if len(self._kept) > KEPT:
            os.close(self._kept.pop(next(iter(self._kept))))
        return self._kept[key]


def _make(from_uid: int, uid: int, from_gid: int, gid: int) -> int:
    held, release = os.pipe()
    unblocked = syscalls.set_signal_mask(syscalls.ALL_SIGNALS)
    try:
        child = syscalls.clone3(syscalls.CLONE_NEWUSER)
        if child == 0:
            os.close(release)
            os.read(held, 1)
            os._exit(0)
    except OSError:
        os.close(release)
        raise
    finally:
        syscalls.set_signal_mask(unblocked)
        os.close(held)
    try:
        for name, line in (("uid_map", f"{from_uid} {uid} 1"), ("gid_map", f"{from_gid} {gid} 1")):
            with open(f"/proc/{child}/{name}", "w") as file:
                file.write(line)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    finally:
        os.close(release)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


OWNERS = Owners()
