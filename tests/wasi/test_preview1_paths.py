"""What WASI's path_* functions do to the namespace, and what no path gets past."""

import struct
from pathlib import Path

import pytest
import trio
from wasikit import (
    ACCES,
    CREATE,
    DIRECTORY,
    EXCLUSIVE,
    EXIST,
    INVAL,
    ISDIR,
    LOOP,
    NAMETOOLONG,
    NOENT,
    NOTCAPABLE,
    NOTDIR,
    NOTEMPTY,
    NOTSUP,
    PERM,
    READ,
    READ_ONLY,
    SUCCESS,
    TRUNCATE,
    Cell,
    Ended,
    Node,
    Program,
    node,
    own_users,
)

NEW = CREATE | EXCLUSIVE
FOLLOW = 1


def ended(tmp_path: Path, program: Program) -> Ended:
    async def main() -> Ended:
        async with node(tmp_path) as here:
            return await here.run(program)

    found = trio.run(main)
    assert found.code == 0, found
    return found


def made(program: Program, *paths: str) -> None:
    """Add the making of files, of directories ("x/") and of symlinks ("x -> y")."""
    for path in paths:
        name, _, target = path.partition(" -> ")
        if target:
            program.call("path_symlink", *program.text(target), 3, *program.text(name))
        elif name.endswith("/"):
            program.call("path_create_directory", 3, *program.text(name))
        else:
            program.call("fd_close", program.open(name, NEW).value)


def opened(
    program: Program,
    path: str,
    oflags: int = 0,
    *,
    lookup: int = FOLLOW,
    rights: int = READ_ONLY,
    at: "int | str" = 3,
    flags: int = 0,
) -> Cell:
    """Add a path_open; return the cell of its errno."""
    return program.call("path_open", at, lookup, *program.text(path), oflags, rights, rights, flags, program.u32())


def stat(program: Program, path: str, *, lookup: int = FOLLOW) -> tuple[Cell, Cell]:
    room = program.room(64)
    return program.call("path_filestat_get", 3, lookup, *program.text(path), room), room


OPENED = [  # what is opened, oflags, lookup flags, rights, the answer
    ("tmp/file", 0, FOLLOW, READ_ONLY, SUCCESS),
    ("tmp/./d/../file", 0, FOLLOW, READ_ONLY, SUCCESS),
    ("tmp//d//", 0, FOLLOW, READ_ONLY, SUCCESS),
    (".", DIRECTORY, FOLLOW, READ_ONLY, SUCCESS),
    ("tmp/missing", 0, FOLLOW, READ_ONLY, NOENT),
    ("tmp/missing/below", 0, FOLLOW, READ_ONLY, NOENT),
    ("tmp/missing/..", 0, FOLLOW, READ_ONLY, NOENT),
    ("tmp/file/below", 0, FOLLOW, READ_ONLY, NOTDIR),
    ("tmp/file/..", 0, FOLLOW, READ_ONLY, NOTDIR),
    ("tmp/file/", 0, FOLLOW, READ_ONLY, NOTDIR),
    ("tmp/file", DIRECTORY, FOLLOW, READ_ONLY, NOTDIR),
    ("tmp/file", CREATE | EXCLUSIVE, FOLLOW, READ_ONLY, EXIST),
    ("tmp/dangling", CREATE | EXCLUSIVE, FOLLOW, READ_ONLY, EXIST),
    ("tmp/d", 0, FOLLOW, READ_ONLY | 1 << 6, ISDIR),
    ("tmp/d", CREATE, FOLLOW, READ_ONLY, ISDIR),
    ("tmp/new/", CREATE, FOLLOW, READ_ONLY, ISDIR),
    ("tmp/d", CREATE | DIRECTORY, FOLLOW, READ_ONLY, INVAL),
    ("tmp/link", 0, FOLLOW, READ_ONLY, SUCCESS),
    ("tmp/link", 0, 0, READ_ONLY, LOOP),
    ("tmp/to-d", DIRECTORY, 0, READ_ONLY, LOOP),
    ("tmp/to-d/inside", 0, 0, READ_ONLY, SUCCESS),
    ("tmp/to-d/", 0, 0, READ_ONLY, SUCCESS),
    ("tmp/to-d/../file", 0, 0, READ_ONLY, SUCCESS),
    ("tmp/absolute", 0, FOLLOW, READ_ONLY, SUCCESS),
    ("tmp/up", 0, FOLLOW, READ_ONLY, SUCCESS),
    ("tmp/dangling", 0, FOLLOW, READ_ONLY, NOENT),
    ("tmp/self", 0, FOLLOW, READ_ONLY, LOOP),
    ("tmp/out", 0, FOLLOW, READ_ONLY, NOTCAPABLE),
    ("tmp/out/etc", 0, FOLLOW, READ_ONLY, NOTCAPABLE),
    ("..", 0, FOLLOW, READ_ONLY, NOTCAPABLE),
    ("tmp/../..", 0, FOLLOW, READ_ONLY, NOTCAPABLE),
    ("tmp/d/../../../tmp/file", 0, FOLLOW, READ_ONLY, NOTCAPABLE),
    ("/tmp/file", 0, FOLLOW, READ_ONLY, NOTCAPABLE),
    ("", 0, FOLLOW, READ_ONLY, NOENT),
    ("tmp/" + "x" * 300, 0, FOLLOW, READ_ONLY, NAMETOOLONG),
    ("tmp/" + "x/" * 3000, 0, FOLLOW, READ_ONLY, NAMETOOLONG),
    ("tmp/a\0b", 0, FOLLOW, READ_ONLY, 25),
    ("tmp/\udcff", 0, FOLLOW, READ_ONLY, 25),
    ("dev/null", 0, FOLLOW, READ_ONLY | 1 << 6, SUCCESS),
]


def test_open_answers_as_the_kernel_would_and_keeps_inside(tmp_path: Path) -> None:
    program = Program()
    made(program, "tmp/file", "tmp/d/", "tmp/d/inside", "tmp/link -> file", "tmp/to-d -> d", "tmp/self -> self")
    made(program, "tmp/absolute -> /tmp/file", "tmp/up -> ../tmp/./file", "tmp/dangling -> nowhere")
    made(program, "tmp/out -> ../../..")
    answers = [
        opened(program, path, oflags, lookup=lookup, rights=rights) for path, oflags, lookup, rights, _ in OPENED
    ]
    found = ended(tmp_path, program)
    wrong = [(row, found[answer]) for row, answer in zip(OPENED, answers, strict=True) if found[answer] != row[-1]]
    assert not wrong


def test_directory_descriptor_is_a_root_of_its_own(tmp_path: Path) -> None:
    program = Program()
    made(
        program,
        "tmp/d/",
        "tmp/d/e/",
        "tmp/d/e/f",
        "tmp/d/absolute -> /tmp/d/e/f",
        "tmp/d/up -> ../d/e/f",
        "tmp/d/in -> e/../e/f",
    )
    d = program.open("tmp/d", DIRECTORY, READ_ONLY)
    answers = [opened(program, path, at=d.value) for path in ("e/f", "in", "absolute", "up", "..", "e/../..", "e/..")]
    file = program.open("tmp/d/e/f", 0, READ_ONLY)
    below_file = opened(program, "x", at=file.value)
    found = ended(tmp_path, program)
    assert [found[answer] for answer in answers] == [SUCCESS, SUCCESS, *[NOTCAPABLE] * 4, SUCCESS]
    assert found[below_file] == NOTDIR


def test_create_makes_a_plain_file_also_through_a_dangling_symlink(tmp_path: Path) -> None:
    program = Program()
    made(program, "tmp/d/", "tmp/link -> d/made")
    fd = program.open("tmp/link", CREATE)
    program.write(fd.value, b"through the link")
    truncated = opened(program, "tmp/d/made", TRUNCATE, rights=READ_ONLY | 1 << 6)
    _, after = stat(program, "tmp/link")
    sync = opened(program, "tmp/other", CREATE, flags=16)
    found = ended(tmp_path, program)
    assert found[fd] == 4 and found[truncated] == SUCCESS and found[sync] == NOTSUP
    assert struct.unpack_from("<B7xQQ", found.bytes(after), 16) == (4, 1, 0)


def test_stat_and_times_tell_a_link_from_its_target(tmp_path: Path) -> None:
    program = Program()
    made(program, "tmp/file", "tmp/link -> file", "tmp/d/", "tmp/to-d -> d")
    program.call("path_filestat_set_times", 3, FOLLOW, *program.text("tmp/link"), 1_000_000_001, 2_000_000_002, 1 | 4)
    _, link = stat(program, "tmp/link", lookup=0)
    _, file = stat(program, "tmp/link")
    _, slash = stat(program, "tmp/to-d/", lookup=0)
    missing, _ = stat(program, "tmp/missing")
    flags, _ = stat(program, "tmp/file", lookup=2)
    now = program.call("path_filestat_set_times", 3, 0, *program.text("tmp/file"), 0, 0, 2 | 8)
    _, later = stat(program, "tmp/file")
    found = ended(tmp_path, program)
    assert [found.bytes(cell)[16] for cell in (link, file, slash)] == [7, 4, 3]
    assert struct.unpack_from("<QQ", found.bytes(file), 40) == (1_000_000_001, 2_000_000_002)
    assert (found[missing], found[flags], found[now]) == (NOENT, INVAL, SUCCESS)
    assert min(struct.unpack_from("<QQ", found.bytes(later), 40)) > 1_600_000_000 * 10**9


def test_symlinks_are_made_and_read(tmp_path: Path) -> None:
    program = Program()
    made(program, "tmp/file", "tmp/d/", "tmp/link -> some/where")
    room, used, short = program.room(32), program.u32(), program.room(4)
    program.call("path_readlink", 3, *program.text("tmp/link"), room, 32, used)
    cut = program.u32()
    program.call("path_readlink", 3, *program.text("tmp/link"), short, 4, cut)
    plain = program.call("path_readlink", 3, *program.text("tmp/file"), room, 32, program.u32())
    refused = {
        path: program.call("path_symlink", *program.text("x"), 3, *program.text(path))
        for path in ("tmp/file", "tmp/d/", "tmp/missing/x", "tmp/new/", "tmp/link", "../x")
    }
    empty = program.call("path_symlink", 0, 0, 3, *program.text("tmp/empty"))
    found = ended(tmp_path, program)
    assert (found.bytes(room, found[used]), found[cut], found.bytes(short)) == (b"some/where", 4, b"some")
    assert found[plain] == INVAL
    assert [found[call] for call in refused.values()] == [EXIST, EXIST, NOENT, NOENT, EXIST, NOTCAPABLE]
    assert found[empty] == NOENT


def test_rename_moves_replaces_and_refuses(tmp_path: Path) -> None:
    program = Program()
    made(program, "tmp/a", "tmp/b", "tmp/d/", "tmp/e/", "tmp/e/full", "tmp/link -> a")
    fd = program.open("tmp/b")
    program.write(fd.value, b"was b")

    def renamed(old: str, new: str) -> Cell:
        return program.call("path_rename", 3, *program.text(old), 3, *program.text(new))

    calls = {
        ("tmp/b", "tmp/a"): SUCCESS,
        ("tmp/b", "tmp/c"): NOENT,
        ("tmp/link", "tmp/d/link"): SUCCESS,
        ("tmp/d", "tmp/f/"): SUCCESS,
        ("tmp/f", "tmp/e"): NOTEMPTY,
        ("tmp/a", "tmp/f"): ISDIR,
        ("tmp/f", "tmp/a"): NOTDIR,
        ("tmp/a", "tmp/x/"): NOTDIR,
        ("tmp/a/", "tmp/x"): NOTDIR,
        ("tmp/f", "tmp/f/below"): INVAL,
        (".", "tmp/x"): INVAL,
        ("tmp/a", "../x"): NOTCAPABLE,
    }
    answers = [renamed(*paths) for paths in calls]
    again = program.open("tmp/a")
    text, count = program.room(8), program.u32()
    program.call("fd_read", again.value, *program.vector(text), count)
    link = stat(program, "tmp/f/link", lookup=0)[0]
    found = ended(tmp_path, program)
    assert [found[answer] for answer in answers] == list(calls.values())
    assert found.bytes(text, found[count]) == b"was b" and found[link] == SUCCESS


def test_links_directories_and_removal(tmp_path: Path) -> None:
    program = Program()
    made(program, "tmp/a", "tmp/d/", "tmp/d/x", "tmp/link -> a", "tmp/to-d -> d")

    def linked(old: str, new: str, lookup: int = 0) -> Cell:
        return program.call("path_link", 3, lookup, *program.text(old), 3, *program.text(new))

    def one(name: str, path: str) -> Cell:
        return program.call(name, 3, *program.text(path))

    answers = [
        (linked("tmp/a", "tmp/hard"), SUCCESS),
        (linked("tmp/a", "tmp/hard"), EXIST),
        (linked("tmp/link", "tmp/followed", FOLLOW), SUCCESS),
        (linked("tmp/d", "tmp/dd"), PERM),
        (linked("tmp/missing", "tmp/m"), NOENT),
        (linked("tmp/a", "tmp/new/"), NOENT),
        (one("path_create_directory", "tmp/d"), EXIST),
        (one("path_create_directory", "."), EXIST),
        (one("path_create_directory", "tmp/no/where"), NOENT),
        (one("path_create_directory", "tmp/link"), EXIST),
        (one("path_remove_directory", "tmp/d"), NOTEMPTY),
        (one("path_remove_directory", "tmp/to-d/"), NOTDIR),
        (one("path_remove_directory", "tmp/a"), NOTDIR),
        (one("path_remove_directory", "."), INVAL),
        (one("path_unlink_file", "tmp/d"), ISDIR),
        (one("path_unlink_file", "tmp/a/"), NOTDIR),
        (one("path_unlink_file", "tmp/missing"), NOENT),
        (one("path_unlink_file", "tmp/to-d"), SUCCESS),
        (one("path_unlink_file", "tmp/d/x"), SUCCESS),
        (one("path_remove_directory", "tmp/d/"), SUCCESS),
        (one("path_unlink_file", "tmp/hard"), SUCCESS),
    ]
    _, left = stat(program, "tmp/a")
    found = ended(tmp_path, program)
    assert [found[cell] for cell, _ in answers] == [errno for _, errno in answers]
    assert struct.unpack_from("<Q", found.bytes(left), 24) == (2,)  # with the one made through the symlink


def test_open_file_survives_its_name(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/gone", NEW)
    program.write(fd.value, b"still here")
    program.call("path_unlink_file", 3, *program.text("tmp/gone"))
    text, count = program.room(16), program.u32()
    program.call("fd_pread", fd.value, *program.vector(text), 0, count)
    missing, _ = stat(program, "tmp/gone")
    found = ended(tmp_path, program)
    assert (found.bytes(text, found[count]), found[missing]) == (b"still here", NOENT)


@own_users
def test_modes_of_the_host_hold_for_the_task(tmp_path: Path) -> None:
    program = Program()
    answers = [
        opened(program, "tmp/secret"),
        opened(program, "tmp/shut/inside"),
        opened(program, "tmp/read", rights=READ | 1 << 6),
    ]

    async def main() -> Ended:
        async with node(tmp_path) as here:
            for name in ("secret", "read"):
                here.put(name, b"x")
            (here.tmp / "secret").chmod(0o600)
            (here.tmp / "shut").mkdir(mode=0o700)
            return await here.run(program)

    found = trio.run(main)
    assert [found[answer] for answer in answers] == [ACCES] * 3


@pytest.mark.parametrize("depth", [20, 40])
def test_deep_paths_are_walked(tmp_path: Path, depth: int) -> None:
    program = Program()
    path = "tmp"
    for number in range(depth):
        path += f"/{number}"
        made(program, path + "/")
    made(program, path + "/file", "tmp/shortcut -> " + path.removeprefix("tmp/"))
    answers = [opened(program, path + "/file"), opened(program, "tmp/shortcut/../../" + "/".join(path.split("/")[-2:]))]
    missing = opened(program, path + "/no/file")
    found = ended(tmp_path, program)
    assert [found[answer] for answer in answers] == [SUCCESS, SUCCESS]
    assert found[missing] == NOENT


def test_a_bind_made_while_the_module_runs_is_seen(tmp_path: Path) -> None:
    program = Program()
    line, count = program.room(8), program.u32()
    before, _ = stat(program, "tmp/place/file")
    program.write(2, b"ready")
    program.call("fd_read", 0, *program.vector(line), count)
    after, _ = stat(program, "tmp/place/file")

    async def main(here: Node) -> None:
        (here.tmp / "place").mkdir()
        (here.tmp / "source").mkdir()
        here.put("source/file", b"")
        task = await here.task(program)
        await here.said(task, "ready")
        await here.echo("bind /tmp/source /tmp/place", f"/task/{task}/ns/ctl")
        await here.echo("go", f"/task/{task}/fd/0")
        found = await here.end(task)
        assert (found[before], found[after]) == (NOENT, SUCCESS)

    async def run() -> None:
        async with node(tmp_path) as here:
            await main(here)

    trio.run(run)
