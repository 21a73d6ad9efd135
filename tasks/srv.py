"""`/srv`: addresses of 9P servers posted under a name, as in Plan 9. `ns mount /srv/NAME OLD` imports one."""

import os
import stat as statmod
from collections.abc import Callable, Sequence
from errno import EEXIST, EINVAL, ENOSPC

from vfs.control import LineHandle
from vfs.directory import Dir
from vfs.files import Synthetic
from vfs.node import Caller, DirEntry, Handle, Node, check_name, no_entry, node_id

MAX_POSTS = 1000


class Post(Synthetic):
    """One posted address: read it, or write another."""

    __slots__ = ("address", "changed_ns", "check", "gid", "uid")

    def __init__(self, who: Caller, check: Callable[[str], object], mode: int) -> None:
        super().__init__(statmod.S_IFREG | mode & 0o666)
        self.uid = who.uid
        self.gid = who.gid
        self.changed_ns = 0
        self.owner = self
        self.address = ""
        self.check = check

    async def open(self, flags: int, who: Caller) -> Handle:
        return PostHandle(self)


class PostHandle(LineHandle[str]):
    """An open `Post`."""

    __slots__ = ("_post",)

    def __init__(self, post: Post) -> None:
        super().__init__()
        self._post = post

    def text(self) -> str:
        return self._post.address

    def split(self, text: str) -> tuple[list[str], str]:
        *lines, tail = text.split("\n")
        return lines, tail

    async def run(self, line: str) -> None:
        try:
            self._post.check(line)
        except ValueError as error:
            raise OSError(EINVAL, str(error)) from None
        self._post.address = line


class Srv(Dir):
    """The directory of posts: creating a file posts its name, writing an address to it fills it, removing it ends it.

    Posts are gone when the server ends. `check` raises OSError(EINVAL) for what is no address.
    """

    __slots__ = ("check", "posts")

    def __init__(self, check: Callable[[str], object]) -> None:
        super().__init__({}, mode=0o1777, id=node_id("srv"))
        self.posts: dict[str, Post] = {}
        self.check = check

    def address(self, name: str) -> str:
        """Return the address posted as `name`. ENOENT if there is none."""
        post = self.posts.get(name)
        if post is None or not post.address:
            raise no_entry(name)
        return post.address

    async def lookup(self, name: str, who: Caller) -> Node:
        post = self.posts.get(name)
        if post is None:
            raise no_entry(name)
        return post

    async def readdir(self, who: Caller) -> Sequence[DirEntry]:
        return [DirEntry(name, post.id, statmod.S_IFREG) for name, post in self.posts.items()]

    async def create(self, name: str, flags: int, mode: int, who: Caller) -> tuple[Node, Handle]:
        if check_name(name) in self.posts:
            raise OSError(EEXIST, f"posted already: {name!r}")
        if len(self.posts) >= MAX_POSTS:
            raise OSError(ENOSPC, f"more than {MAX_POSTS} posts")
        post = Post(who, self.check, mode)
        post.id = node_id(self.id, name, os.urandom(8).hex())
        self.posts[name] = post
        return post, await post.open(flags, who)

    async def unlink(self, name: str, who: Caller) -> None:
        if self.posts.pop(name, None) is None:
            raise no_entry(name)
