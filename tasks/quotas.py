"""Homes of a fixed size: each in a filesystem of its own, in an image file of that size.

A project quota would cost less, but most filesystems are not mounted with one; an image works on all of them. What
is written beyond it is ENOSPC. Needs root, mkfs.ext4 and loop devices.
"""

import os
import shutil
import subprocess
from errno import EBUSY, EINVAL, EIO, ENOTSUP
from pathlib import Path

import structlog

from tasks.taskd.privilege import one_user
from tasks.taskd.syscalls import MNT_DETACH, UMOUNT_NOFOLLOW, umount

log = structlog.get_logger("tasks")

LEAST = 1 << 20
SECONDS = 60.0
"""How long a program that makes or mounts an image may take."""


class Quotas:
    """The images in `directory`, each named as the home that it is mounted on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def limit(self, home: Path, size: int, uid: int, gid: int) -> None:
        """Give an empty home `size` bytes and no more. Blocks for some 50 ms.

        EINVAL below 1 MiB, EBUSY if it has a quota or holds something, ENOSPC, ENOTSUP with what is lacking.
        """
        if size < LEAST:
            raise OSError(EINVAL, f"a home has at least {LEAST} bytes")
        self._check_possible()
        image = self._directory / home.name
        if image.exists() or any(home.iterdir()):
            raise OSError(EBUSY, "the home has a quota or is not empty")
        self._directory.mkdir(mode=0o700, exist_ok=True)
        try:
            with image.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            owner = f"root_owner={uid}:{gid},nodiscard"
            _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", owner, str(image))
            self._mount(image, home)
            (home / "lost+found").rmdir()
            home.chmod(0o700)
        except BaseException:
            self.drop(home)
            raise

    @staticmethod
    def _check_possible() -> None:
        if os.geteuid() != 0 or one_user():
            raise OSError(ENOTSUP, "only root's server can hold homes to a size")
        if shutil.which("mkfs.ext4") is None:
            raise OSError(ENOTSUP, "mkfs.ext4 is not installed, which holds homes to a size")
        if not os.path.exists("/dev/loop-control"):
            raise OSError(ENOTSUP, "this machine has no loop devices, which hold homes to a size")

    @staticmethod
    def _mount(image: Path, home: Path) -> None:
        _run("mount", "-o", "loop,nosuid,nodev", "-t", "ext4", str(image), str(home))

    def resume(self, homes: Path) -> None:
        """Mount what an earlier server, or the machine's end, left unmounted. Blocks."""
        for image in sorted(self._directory.iterdir()) if self._directory.exists() else ():
            home = homes / image.name
            if not home.is_dir():
                image.unlink()
            elif not home.is_mount():
                try:
                    self._mount(image, home)
                except OSError as error:
                    log.warning("a home is without its files", home=str(home), error=str(error))

    def suspend(self, homes: Path) -> None:
        """Unmount all, until `resume`: no task runs any more."""
        for image in self._directory.iterdir() if self._directory.exists() else ():
            _unmount(homes / image.name)

    def drop(self, home: Path) -> None:
        """Forget the quota of a home, if it has one, with what it holds."""
        image = self._directory / home.name
        if image.exists():
            _unmount(home)
            image.unlink()


def _unmount(home: Path) -> None:
    if home.is_mount():
        umount(str(home), MNT_DETACH | UMOUNT_NOFOLLOW)


def _run(*words: str) -> None:
    """Run a program. EIO with what it says if it fails."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(EIO, f"{words[0]} takes too long") from None
    if done.returncode:
        raise OSError(EIO, f"{words[0]}: {done.stderr.decode(errors='replace').strip()[:300]}")
