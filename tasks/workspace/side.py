"""One of the two folders of a sync, touched only through descriptors below its root.

The owner of a folder may be hostile and act meanwhile. So no path is ever resolved through a symlink or out of the
folder or its file system (openat2(2)), nothing is written into an existing file, and what is replaced or removed is
first taken aside and looked at: if it is not what the plan was made for, it is put back (`Changed`).
"""

import os
import secrets
import stat as statmod
from collections.abc import Callable
from contextlib import suppress
from errno import E2BIG, EINVAL, ENOSYS, EXDEV
from pathlib import Path

from tasks.workspace.entries import TEMP_PREFIX, Entry, entry_of
from vfs.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
    renameat2,
    syncfs,
)

MAX_ENTRIES = 1_000_000
BLOCK = 1 << 20
RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
NOREPLACE, EXCHANGE = 1, 2  # renameat2(2)
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Changed(Exception):
    """A file is not, or no longer, what it was when the folder was read: it is left alone until the next look."""


class Side:
    """The folder `root`. New files get `owner` (uid, gid); None: the replaced file's, else the folder's own.

    A folder with an `owner` stands in that owner's home: if it is a symlink it is not opened (ENOTDIR).
    """

    def __init__(self, root: Path, owner: tuple[int, int] | None = None) -> None:
        follow = os.O_NOFOLLOW if owner is not None else 0
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow)
        st = os.fstat(self._root)
        self.identity = [st.st_dev, st.st_ino]
        self.written = False
        self._folder_owner = (st.st_uid, st.st_gid)
        self._owner = owner
        self._last: tuple[str, int] | None = None

    def close(self) -> None:
        self._forget_folder()
        os.close(self._root)

    def settle(self) -> None:
        """Have what was written reach the disk (syncfs(2)): a record of it must not be there before it."""
        if self.written:
            syncfs(self._root)

    # Looking

    def scan(self, tell: Callable[[int], None]) -> tuple[dict[str, Entry], dict[str, str]]:
        """Return every entry by its path, and why others can't be told: for a directory that holds for all below it.

        OSError E2BIG past `MAX_ENTRIES`.
        """
        found: dict[str, Entry] = {}
        unknown: dict[str, str] = {}
        pending = [""]
        device = self.identity[0]
        while pending:
            folder = pending.pop()
            prefix = folder + "/" if folder else ""
            try:
                fd = openat2(self._root, folder or ".", READ | os.O_DIRECTORY, RESOLVE)
            except OSError as error:
                if not folder:
                    raise
                unknown[folder] = _why(error)
                del found[folder]
                continue
            try:
                with os.scandir(fd) as names:
                    for name in names:
                        path = prefix + name.name
                        try:
                            st = name.stat(follow_symlinks=False)
                            target = os.readlink(name.name, dir_fd=fd) if name.is_symlink() else ""
                        except FileNotFoundError:
                            continue
                        if name.name.startswith(TEMP_PREFIX):
                            if statmod.S_ISREG(st.st_mode) or statmod.S_ISLNK(st.st_mode):
                                os.unlink(name.name, dir_fd=fd)
                            continue
                        entry = entry_of(st, target)
                        if entry is None:
                            unknown[path] = "not a file, directory or symlink"
                        elif st.st_dev != device:
                            unknown[path] = "on another file system"
                        else:
                            found[path] = entry
                            if entry.kind == "d":
                                pending.append(path)
            except OSError as error:
                if not folder:
                    raise
                unknown[folder] = _why(error)
            finally:
                os.close(fd)
            if len(found) > MAX_ENTRIES:
                raise OSError(E2BIG, f"more than {MAX_ENTRIES} files")
            tell(len(found))
        return found, unknown

    def open(self, path: str, expected: Entry) -> int:
        """Return a descriptor for reading a regular file. Changed."""
        folder, name = self._at(path)
        try:
            fd = os.open(name, READ, dir_fd=folder)
        except FileNotFoundError:
            raise Changed from None
        if entry_of(os.fstat(fd)) != expected:
            os.close(fd)
            raise Changed
        return fd

    def look(self, path: str) -> Entry | None:
        """Return what is at `path` now, None for nothing that is synced."""
        try:
            folder, name = self._at(path)
            st = os.stat(name, dir_fd=folder, follow_symlinks=False)
            return entry_of(st, os.readlink(name, dir_fd=folder) if statmod.S_ISLNK(st.st_mode) else "")
        except (FileNotFoundError, Changed):
            return None

    # Changing

    def put_file(self, path: str, source: int, entry: Entry, expected: Entry | None) -> Entry:
        """Make `path` a copy of the descriptor `source`, with the mode and time of `entry`; return its new entry.

        Changed if the source is not `entry` to the end, or what stood here was not `expected`.
        """
        folder, name = self._at(path)
        temp = _temp_name()
        fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            try:
                copy(source, fd, entry.size)
                if entry_of(os.fstat(source)) != entry:
                    raise Changed
                self._give(fd, self._owner_for(folder, name))
                os.fchmod(fd, entry.mode)
                os.utime(fd, ns=(entry.mtime, entry.mtime))
                self._place(folder, temp, name, expected)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temp, dir_fd=folder)
                raise
            st = os.fstat(fd)  # whoever writes to it from now on changes it: size and mtime are those that were copied
            return Entry("f", entry.mode, entry.size, entry.mtime, st.st_ino, st.st_ctime_ns)
        finally:
            os.close(fd)

    def put_link(self, path: str, entry: Entry, expected: Entry | None) -> Entry:
        """Make `path` a symlink as `entry` says. Changed."""
        folder, name = self._at(path)
        temp = _temp_name()
        os.symlink(entry.target, temp, dir_fd=folder)
        try:
            if os.geteuid() == 0:
                os.chown(temp, *self._owner_for(folder, name), dir_fd=folder, follow_symlinks=False)
            self._place(folder, temp, name, expected)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temp, dir_fd=folder)
            raise
        return entry

    def make_folder(self, path: str) -> None:
        """Make a directory, writable for its owner until its mode is set. Changed if something is there."""
        folder, name = self._at(path)
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
        except FileExistsError:
            raise Changed from None
        fd = os.open(name, READ | os.O_DIRECTORY, dir_fd=folder)
        try:
            self._give(fd, self._owner or self._folder_owner)
        finally:
            os.close(fd)
        self.written = True

    def set_attributes(self, path: str, entry: Entry, expected: Entry) -> Entry:
        """Give what is at `path` the mode, and to a file the time, of `entry`. Changed if it is not `expected`."""
        folder, name = self._at(path)
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            raise Changed from None
        try:
            now = entry_of(os.fstat(fd))
            if now is None or not now.same_file(expected):
                raise Changed
            through = f"/proc/self/fd/{fd}"
            os.chmod(through, entry.mode)
            if entry.kind == "f":
                os.utime(through, ns=(entry.mtime, entry.mtime))
            self.written = True
            st = os.fstat(fd)
            if entry.kind == "d":
                return Entry("d", entry.mode)
            return Entry("f", entry.mode, expected.size, entry.mtime, st.st_ino, st.st_ctime_ns)
        finally:
            os.close(fd)

    def move(self, path: str, new: str, expected: Entry) -> Entry:
        """Rename a file. Changed if it is not `expected` or the new name is taken."""
        entry = self.look(path)
        if entry is None or not entry.same_file(expected):
            raise Changed
        self.rename(path, new)
        moved = self.look(new)
        if moved is None or not moved.same_file(expected):
            raise Changed
        return moved

    def rename(self, path: str, new: str) -> None:
        """Rename whatever is there. Changed if nothing is, or the new name is taken."""
        new_folder, new_name = self._at(new)
        new_folder = os.dup(new_folder)
        try:
            folder, name = self._at(path)
            self._rename(folder, name, new_folder, new_name)
        finally:
            os.close(new_folder)

    def remove(self, path: str, expected: Entry) -> None:
        """Remove a file, a symlink or an empty directory. Changed if it is not `expected`, or not empty."""
        folder, name = self._at(path)
        self.written = True
        if expected.kind == "d":
            self._forget_folder()
            folder, name = self._at(path)
            try:
                os.rmdir(name, dir_fd=folder)
            except FileNotFoundError:
                return
            except OSError:
                raise Changed from None
            return
        temp = _temp_name()
        self._rename(folder, name, folder, temp)
        if not _is(folder, temp, expected):
            self._rename(folder, temp, folder, name)
            raise Changed
        os.unlink(temp, dir_fd=folder)

    # Below

    def _at(self, path: str) -> tuple[int, str]:
        """Return the directory of `path`, open until the next call, and the last name. Changed if it is gone."""
        parent, _, name = path.rpartition("/")
        if not parent:
            return self._root, name
        if self._last is None or self._last[0] != parent:
            self._forget_folder()
            try:
                self._last = (parent, openat2(self._root, parent, READ | os.O_DIRECTORY, RESOLVE))
            except (FileNotFoundError, NotADirectoryError):
                raise Changed from None
        return self._last[1], name

    def _forget_folder(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None

    def _place(self, folder: int, temp: str, name: str, expected: Entry | None) -> None:
        """Give a finished file its name. What stood there is removed only if it was `expected`."""
        self.written = True
        if expected is None:
            self._rename(folder, temp, folder, name)
            return
        try:
            renameat2(folder, temp, folder, name, EXCHANGE)
        except FileNotFoundError:
            raise Changed from None
        except OSError as error:
            if error.errno not in (EINVAL, ENOSYS):
                raise
            if not _is(folder, name, expected):  # a file system that cannot exchange: look, then replace
                raise Changed from None
            os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        if not _is(folder, temp, expected):
            renameat2(folder, temp, folder, name, EXCHANGE)
            raise Changed
        os.unlink(temp, dir_fd=folder)

    def _rename(self, folder: int, name: str, new_folder: int, new_name: str) -> None:
        self.written = True
        try:
            renameat2(folder, name, new_folder, new_name, NOREPLACE)
        except (FileExistsError, FileNotFoundError):
            raise Changed from None
        except OSError as error:
            if error.errno not in (EINVAL, ENOSYS):
                raise
            if _exists(new_folder, new_name):
                raise Changed from None
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)

    def _owner_for(self, folder: int, name: str) -> tuple[int, int]:
        if self._owner is not None:
            return self._owner
        try:
            st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return self._folder_owner
        return st.st_uid, st.st_gid

    @staticmethod
    def _give(fd: int, owner: tuple[int, int]) -> None:
        if os.geteuid() == 0:
            os.fchown(fd, *owner)


def copy(source: int, to: int, size: int) -> None:
    """Copy a file in the kernel: by reference where the file system can, else by copy_file_range(2) or sendfile(2)."""
    done = 0
    try:
        while done < size and (count := os.copy_file_range(source, to, size - done)):
            done += count
    except OSError as error:
        if error.errno not in (EXDEV, EINVAL, ENOSYS) or done:
            raise
        while done < size and (count := os.sendfile(to, source, None, min(size - done, 1 << 30))):
            done += count


def same_content(one: int, other: int, size: int) -> bool:
    """Compare two open files of `size` bytes, from their beginnings; both are at their beginnings again after."""
    offset = 0
    while offset < size:
        block = os.pread(one, BLOCK, offset)
        if not block or block != os.pread(other, BLOCK, offset):
            return False
        offset += len(block)
    return True


def _is(folder: int, name: str, expected: Entry) -> bool:
    st = os.stat(name, dir_fd=folder, follow_symlinks=False)
    target = os.readlink(name, dir_fd=folder) if statmod.S_ISLNK(st.st_mode) else ""
    entry = entry_of(st, target)
    return entry is not None and entry.same_file(expected)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _temp_name() -> str:
    return TEMP_PREFIX + secrets.token_hex(8)


def _why(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or EINVAL)
