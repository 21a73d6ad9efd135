"""What WASI's fd_* functions do to files of the namespace and to the task's own descriptors."""

import struct
from pathlib import Path

import trio
from wasikit import (
    ALLOCATE,
    BADF,
    CREATE,
    DIRECTORY,
    EXCLUSIVE,
    FAULT,
    INVAL,
    NOTCAPABLE,
    NOTDIR,
    NOTSOCK,
    NOTSUP,
    READ,
    READ_ONLY,
    SEEK,
    SUCCESS,
    TELL,
    WRITE,
    Ended,
    Program,
    node,
)

SET, CURRENT, END = 0, 1, 2
APPEND, DSYNC, NONBLOCK = 1, 2, 4
NEW = CREATE | EXCLUSIVE


def ended(tmp_path: Path, program: Program, *, before: "dict[str, bytes] | None" = None) -> Ended:
    """Run a program once, with these files in /tmp, and return what it answered."""

    async def main() -> Ended:
        async with node(tmp_path) as here:
            for name, content in (before or {}).items():
                here.put(name, content)
            return await here.run(program)

    found = trio.run(main)
    assert found.code == 0, found
    return found


def test_write_and_read_move_the_position_and_gather_and_scatter(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/new", NEW)
    written, count = program.u32(), program.u32()
    vector = program.vector(program.data(b"hello "), program.data(b""), program.data(b"world"))
    program.call("fd_write", fd.value, *vector, written)
    place = program.room(8)
    program.call("fd_tell", fd.value, place)
    back = program.room(8)
    program.call("fd_seek", fd.value, -9, END, back)
    one, two = program.room(4), program.room(20)
    program.call("fd_read", fd.value, *program.vector(one, two), count)
    rest = program.u32()
    program.call("fd_read", fd.value, *program.vector(program.room(4)), rest)
    found = ended(tmp_path, program)
    assert (found[written], found.u64(place), found.u64(back)) == (11, 11, 2)
    assert (found[count], found.bytes(one), found.bytes(two, 5)) == (9, b"llo ", b"world")
    assert found[rest] == 0


def test_pread_and_pwrite_leave_the_position(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/new", NEW)
    program.write(fd.value, b"0123456789")
    program.call("fd_pwrite", fd.value, *program.vector(program.data(b"ab")), 3, program.u32())
    buffer, count, place = program.room(4), program.u32(), program.room(8)
    program.call("fd_pread", fd.value, *program.vector(buffer), 2, count)
    program.call("fd_tell", fd.value, place)
    beyond = program.call("fd_pread", fd.value, *program.vector(buffer), 1 << 63, count)
    found = ended(tmp_path, program)
    assert (found.bytes(buffer), found.u64(place), found[beyond]) == (b"2ab5", 10, INVAL)


def test_seek_refuses_what_is_no_position(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/new", NEW)
    at = program.room(8)
    negative = program.call("fd_seek", fd.value, -1, SET, at)
    whence = program.call("fd_seek", fd.value, 0, 3, at)
    far = program.call("fd_seek", fd.value, 1 << 40, SET, at)
    program.write(fd.value, b"x")
    stat = program.room(64)
    program.call("fd_filestat_get", fd.value, stat)
    pipe = program.call("fd_seek", 1, 0, CURRENT, program.room(8))
    found = ended(tmp_path, program)
    assert (found[negative], found[whence], found[far], found[pipe]) == (INVAL, INVAL, SUCCESS, NOTCAPABLE)
    assert struct.unpack_from("<Q", found.bytes(stat), 32) == ((1 << 40) + 1,)


def test_append_writes_at_the_end_also_when_asked_for_later(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/new", NEW, flags=APPEND)
    program.write(fd.value, b"one ")
    program.call("fd_seek", fd.value, 0, SET, program.room(8))
    program.write(fd.value, b"two ")
    program.call("fd_fdstat_set_flags", fd.value, 0)
    program.call("fd_seek", fd.value, 0, SET, program.room(8))
    program.write(fd.value, b"ONE")
    program.call("fd_fdstat_set_flags", fd.value, APPEND)
    program.write(fd.value, b"three")
    stat = program.room(24)
    program.call("fd_fdstat_get", fd.value, stat)
    refused = program.call("fd_fdstat_set_flags", fd.value, DSYNC)
    text, count = program.room(32), program.u32()
    program.call("fd_pread", fd.value, *program.vector(text), 0, count)
    found = ended(tmp_path, program)
    assert found.bytes(text, found[count]) == b"ONE two three"
    assert found.bytes(stat, 4) == struct.pack("<BxH", 4, APPEND)
    assert found[refused] == NOTSUP


def test_sizes_allocation_and_times_are_set(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/new", NEW)
    program.write(fd.value, b"abcdef")
    calls = [
        program.call("fd_filestat_set_size", fd.value, 3),
        program.call("fd_allocate", fd.value, 10, 90),
        program.call("fd_allocate", fd.value, 0, 10),
        program.call("fd_filestat_set_times", fd.value, 5_000_000_007, 6_000_000_008, 1 | 4),
        program.call("fd_advise", fd.value, 0, 10, 1),
        program.call("fd_sync", fd.value),
        program.call("fd_datasync", fd.value),
    ]
    nothing = program.call("fd_allocate", fd.value, 0, 0)
    both = program.call("fd_filestat_set_times", fd.value, 0, 0, 1 | 2)
    advice = program.call("fd_advise", fd.value, 0, 10, 6)
    stat = program.room(64)
    program.call("fd_filestat_get", fd.value, stat)
    found = ended(tmp_path, program)
    assert [found[call] for call in calls] == [SUCCESS] * len(calls)
    assert [found[call] for call in (nothing, both, advice)] == [INVAL] * 3
    _, inode, kind, links, size, atime, mtime, _ = struct.unpack("<QQB7xQQQQQ", found.bytes(stat))
    assert (kind, links, size, atime, mtime) == (4, 1, 100, 5_000_000_007, 6_000_000_008) and inode


def test_readdir_continues_at_every_cookie(tmp_path: Path) -> None:
    names = {f"file-{number:03}": b"" for number in range(60)}
    program = Program()
    fd = program.open("tmp", DIRECTORY, READ_ONLY)
    buffer, used = program.room(8192), program.u32()
    program.call("fd_readdir", fd.value, buffer, 8192, 0, used)
    part, part_used = program.room(100), program.u32()
    program.call("fd_readdir", fd.value, part, 100, f"(i64.load (i32.const {int(buffer)}))", part_used)
    none = program.call("fd_readdir", 1, part, 100, 0, program.u32())
    found = ended(tmp_path, program, before=names)
    listed = entries(found.bytes(buffer)[: found[used]])
    assert {name for name, _, _ in listed} == {".", "..", "program.wasm", *names}
    assert {kind for name, kind, _ in listed if name.startswith("file")} == {4}
    assert found[part_used] == 100  # filled to the brim, the last entry cut
    assert [name for name, _, _ in entries(found.bytes(part))] == [name for name, _, _ in listed[1:4]][
        : len(entries(found.bytes(part)))
    ]
    assert found[none] in (NOTDIR, NOTCAPABLE)


def entries(data: bytes) -> list[tuple[str, int, int]]:
    """Return (name, type, cookie) of every whole entry."""
    found = []
    while len(data) >= 24:
        cookie, _, size, kind = struct.unpack_from("<QQIB", data)
        if len(data) < 24 + size:
            break
        found.append((data[24 : 24 + size].decode(), kind, cookie))
        data = data[24 + size :]
    return found


def test_renumber_and_close_reuse_the_lowest_number(tmp_path: Path) -> None:
    program = Program()
    first, second = program.open("tmp/a", NEW), program.open("tmp/b", NEW)
    moved = program.call("fd_renumber", second.value, first.value)
    gone = program.write(second.value, b"lost")
    kept = program.write(first.value, b"b")
    again = program.open("tmp/c", NEW)
    closed = program.call("fd_close", again.value)
    twice = program.call("fd_close", again.value)
    unknown = program.call("fd_renumber", 77, 0)
    found = ended(tmp_path, program)
    assert (found[first], found[second], found[again]) == (4, 5, 5)
    assert (found[moved], found[gone], found[kept], found[closed]) == (SUCCESS, BADF, SUCCESS, SUCCESS)
    assert (found[twice], found[unknown]) == (BADF, BADF)


def test_rights_can_only_be_given_up_and_hold(tmp_path: Path) -> None:
    program = Program()
    fd = program.open("tmp/new", NEW)
    given = program.call("fd_fdstat_set_rights", fd.value, READ | SEEK | TELL, 0)
    write = program.write(fd.value, b"x")
    allocate = program.call("fd_allocate", fd.value, 0, 10)
    back = program.call("fd_fdstat_set_rights", fd.value, READ | WRITE | ALLOCATE, 0)
    reader = program.open("tmp/new", 0, READ_ONLY)
    unwritable = program.write(reader.value, b"x")
    below = program.open("tmp", DIRECTORY, READ_ONLY)
    program.call("fd_fdstat_set_rights", below.value, (1 << 30) - 1 & ~(1 << 30), READ)
    narrowed = program.call("fd_fdstat_set_rights", below.value, 1 << 13, READ)
    more = program.open("new", 0, READ | WRITE, at=below.value)
    found = ended(tmp_path, program)
    assert [found[call] for call in (given, write, allocate, back)] == [SUCCESS, NOTCAPABLE, NOTCAPABLE, NOTCAPABLE]
    assert (found[unwritable], found[narrowed], found[more]) == (NOTCAPABLE, SUCCESS, 0xFFFFFFFF)


def test_preopened_root_is_the_only_one_and_has_number_3(tmp_path: Path) -> None:
    program = Program()
    prestat, name = program.room(8), program.data(b"...")
    program.call("fd_prestat_get", 3, prestat)
    program.call("fd_prestat_dir_name", 3, name, 1)
    short = program.call("fd_prestat_dir_name", 3, name, 0)
    others = [program.call("fd_prestat_get", number, prestat) for number in (0, 4)]
    stat = program.room(24)
    program.call("fd_fdstat_get", 3, stat)
    found = ended(tmp_path, program)
    assert (found.bytes(prestat), found.bytes(name)) == (struct.pack("<B3xI", 0, 1), b"/..")
    assert found[short] == 37 and [found[call] for call in others] == [BADF, BADF]
    assert found.bytes(stat, 1) == b"\3"


def test_pointers_outside_the_memory_are_refused_and_touch_nothing(tmp_path: Path) -> None:
    beyond = 2 * 65536
    program = Program()
    fd = program.open("tmp/new", NEW)
    calls = [
        program.call("fd_write", fd.value, beyond - 4, 1, program.u32()),
        program.call("fd_write", fd.value, program.data(struct.pack("<II", beyond - 1, 2)), 1, program.u32()),
        program.call("fd_read", fd.value, program.data(struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF)), 1, program.u32()),
        program.call("fd_read", fd.value, *program.vector(program.room(4)), beyond - 3),
        program.call("random_get", beyond - 1, 2),
        program.call("clock_time_get", 0, 0, 0xFFFFFFFF),
        program.call("path_open", 3, 0, beyond - 1, 2, 0, 0, 0, 0, program.u32()),
        program.call("path_open", 3, 0, *program.text("tmp"), 0, 0, 0, 0, beyond - 3),
        program.call("poll_oneoff", beyond - 40, 0, 1, program.u32()),
        program.call("args_get", beyond - 2, 0),
    ]
    many = program.call("fd_write", fd.value, 0, 1025, program.u32())
    found = ended(tmp_path, program)
    assert [found[call] for call in calls] == [FAULT] * len(calls)
    assert found[many] == INVAL


def test_unknown_descriptors_are_refused_by_every_function(tmp_path: Path) -> None:
    from tasks.drivers.wasi.abi import SIGNATURES

    program = Program()
    room = program.room(64)
    skipped = {"fd_renumber"}
    calls = {
        name: program.call(name, 99, *(int(room) if kind == "p" else 0 for kind in kinds[1:]))
        for name, kinds in SIGNATURES.items()
        if name.startswith(("fd_", "sock_")) and name not in skipped
    }
    sockets = [
        program.call(name, 1, *(int(room) if kind == "p" else 0 for kind in SIGNATURES[name][1:]))
        for name in SIGNATURES
        if name.startswith("sock")
    ]
    found = ended(tmp_path, program)
    assert {name for name, call in calls.items() if found[call] != BADF} == set()
    assert [found[call] for call in sockets] == [NOTSOCK] * 4


def test_standard_streams_are_the_tasks_own_pipes(tmp_path: Path) -> None:
    program = Program()
    line, count = program.room(16), program.u32()
    program.call("fd_read", 0, *program.vector(line), count)
    program.write(2, b"to stderr")
    end = program.u32()
    program.call("fd_read", 0, *program.vector(program.room(4)), end)

    async def main() -> None:
        async with node(tmp_path) as here:
            task = await here.task(program)
            await here.echo("typed", f"/task/{task}/fd/0")
            await here.echo("close", f"/task/{task}/fd/0ctl")
            found = await here.end(task)
            assert (found[count], found.bytes(line, 6), found[end], found.err) == (6, b"typed\n", 0, b"to stderr")

    trio.run(main)


def test_given_descriptors_keep_their_numbers(tmp_path: Path) -> None:
    program = Program()
    buffer, count, place = program.room(8), program.u32(), program.room(8)
    program.call("fd_seek", 7, 2, SET, place)
    program.call("fd_read", 7, *program.vector(buffer), count)
    opened = program.open("tmp/new", NEW)

    async def main() -> None:
        async with node(tmp_path) as here:
            path, data = here.put("program.wasm", program.compile()), here.put("data", b"0123456789")
            task = await here.new(f"cmd {path}")
            await here.echo(f"open 7 {data} r", f"/task/{task}/fd/ctl")
            await here.echo("start", f"/task/{task}/ctl")
            found = await here.end(task)
            assert (found[count], found.bytes(buffer), found[opened]) == (8, b"23456789", 4)
            other = await here.new(f"cmd {path}")
            await here.echo(f"open 3 {data} r", f"/task/{other}/fd/ctl")
            try:
                await here.echo("start", f"/task/{other}/ctl")
            except OSError as error:
                assert "root" in await here.cat(f"/task/{other}/error") and error.errno == 22
            else:
                raise AssertionError("descriptor 3 is the root's")

    trio.run(main)


def test_what_was_written_last_takes_effect_at_exit(tmp_path: Path) -> None:
    program = Program()
    ctl = program.open("task/self/ctl", 0, READ_ONLY | WRITE)
    program.write(ctl.value, b"label " + b"k" * 20 + b"=" + b"v" * 40)

    async def main() -> None:
        async with node(tmp_path) as here:
            task = await here.task(program)
            await here.end(task)
            assert await here.cat(f"/task/{task}/labels") == "k" * 20 + "=" + "v" * 40 + "\n"

    trio.run(main)
