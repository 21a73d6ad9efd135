"""How a process of ours becomes a task's: another user, or at least one without privileges."""

import os
from errno import EPERM
from functools import lru_cache

from tasks.taskd import syscalls


@lru_cache(maxsize=1)
def one_user() -> bool:
    """Tell whether this process is in a user namespace that knows one uid only, as a plain user can make.

    Looked up once: later it may be in a root without /proc.
    """
    try:
        with open("/proc/self/uid_map") as file:
            return [line.split()[2] for line in file] == ["1"]
    except FileNotFoundError:  # a kernel without user namespaces
        return False


def become(uid: int, gid: int) -> None:
    """Become a user with one group and no capability, for good. EPERM where that is not ours to do.

    Where there is only one user the groups of who made the namespace stay: the kernel lets nobody drop them there.
    """
    if os.geteuid() == 0:
        if not one_user():
            os.setgroups([])
        os.setresgid(gid, gid, gid)
        if uid == 0:
            syscalls.drop_capabilities()  # others lose theirs with the uid
        os.setresuid(uid, uid, uid)
    elif (uid, gid) != (os.geteuid(), os.getegid()):
        raise OSError(EPERM, "only root starts tasks of other users")
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)  # no exec gains a capability, so the bounding set needs no care
