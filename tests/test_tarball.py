"""vfs.tarball: archives by real tar and hostile archives by hand."""

import errno
import gc
import io
import os
import stat
import subprocess
import tarfile

import pytest
import trio

from vfs import tarball
from vfs.inline import start
from vfs.node import ROOT, SetStat
from vfs.tarball import TarTree
from vfs.walk import walk


def archive(*members, format=tarfile.PAX_FORMAT):
    """Build an archive of (name, data, attributes); data may claim another size than it has."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data, attributes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


def read(node, size=1 << 20, offset=0):
    async def main():
        handle = await node.open(os.O_RDONLY, ROOT)
        try:
            return await handle.read(size, offset)
        finally:
            handle.close()

    return trio.run(main)


def at(tree, path, follow=True):
    return start(walk(tree.root, path, ROOT, follow=follow))


def refused_with(source, **options):
    with pytest.raises(OSError) as caught:
        TarTree(source, label="bad", **options)
    return errno.errorcode[caught.value.errno]


@pytest.fixture
def folder(tmp_path):
    """A directory with one of everything."""
    top = tmp_path / "src"
    (top / "dir" / "sub").mkdir(parents=True)
    (top / "dir" / "file").write_bytes(b"content\n" * 1000)
    (top / "dir" / "file").chmod(0o640)
    os.utime(top / "dir" / "file", ns=(10**9, 1_500_000_000 * 10**9))
    (top / "empty").touch()
    os.link(top / "dir" / "file", top / "hard")
    os.symlink("dir/file", top / "soft")
    os.symlink("/dir/sub", top / "absolute")
    os.mkfifo(top / "fifo")
    (top / "new\nline \udcff").write_bytes(b"odd")
    with open(top / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(10 << 20)
        file.write(b"end")
    return top


@pytest.mark.parametrize("options", [["-S"], ["--format=ustar"], ["--format=gnu", "-S"], ["-z"], ["-j"], ["-J"]])
def test_an_archive_by_tar_shows_what_was_packed(folder, tmp_path, options):
    path = tmp_path / "a.tar"
    subprocess.run(["tar", "-cf", path, *options, "-C", folder, "."], check=True, timeout=60)
    tree = TarTree(path, label="t")
    names = {entry.name for entry in start(tree.root.readdir(ROOT))}
    assert names == {"dir", "empty", "hard", "soft", "absolute", "fifo", "new\nline \udcff", "sparse"}
    file = at(tree, "dir/file")
    st = start(file.stat())
    real = os.stat(folder / "dir" / "file")
    assert (st.st_mode, st.st_size, st.st_nlink) == (real.st_mode, real.st_size, 2)
    assert (st.st_uid, st.st_gid, st.st_mtime_ns) == (real.st_uid, real.st_gid, real.st_mtime_ns)
    assert at(tree, "hard") is file
    assert read(file) == b"content\n" * 1000
    assert read(file, 5, 7998) == b"t\n"
    assert read(file, 5, 8000) == b""
    assert read(at(tree, "empty")) == b""
    assert read(at(tree, "new\nline \udcff")) == b"odd"
    assert start(at(tree, "soft", follow=False).readlink()) == "dir/file"
    assert at(tree, "soft") is file
    assert at(tree, "absolute") is at(tree, "dir/sub")
    assert stat.S_ISFIFO(start(at(tree, "fifo").stat()).st_mode)
    sparse = at(tree, "sparse")
    assert start(sparse.stat()).st_size == (10 << 20) + 3
    assert read(sparse, 10, 0) == b"begin" + bytes(5)
    assert read(sparse, 100, (10 << 20) - 5) == bytes(5) + b"end"


def test_every_change_is_erofs(folder, tmp_path):
    path = tmp_path / "a.tar"
    subprocess.run(["tar", "-cf", path, "-C", folder, "."], check=True, timeout=60)
    root = TarTree(path, label="t").root
    file = start(root.lookup("empty", ROOT))
    for operation in (
        root.create("x", os.O_RDWR, 0o644, ROOT),
        root.mkdir("x", 0o755, ROOT),
        root.unlink("empty", ROOT),
        root.rename("empty", root, "x", 0, ROOT),
        file.setstat(SetStat(mode=0), ROOT),
        file.setxattr("user.a", b"", 0, ROOT),
        file.open(os.O_RDWR, ROOT),
        file.open(os.O_WRONLY | os.O_TRUNC, ROOT),
    ):
        with pytest.raises(OSError) as caught:
            start(operation)
        assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("name", ["../x", "a/../../x", "..", "n" * 256, "a/" * 300 + "f", "p/" + "x" * 5000])
def test_a_hostile_name_refuses_the_archive(name):
    assert refused_with(archive(("fine", b"", {}), (name, b"x", {}))) == "EINVAL"


def test_a_nul_in_a_name_refuses_the_archive():
    assert refused_with(archive(("x", b"", {"pax_headers": {"path": "a\0b"}}))) == "EINVAL"


def test_a_leading_slash_means_nothing():
    tree = TarTree(archive(("/etc/passwd", b"not the host's", {})), label="t")
    assert read(at(tree, "etc/passwd")) == b"not the host's"


@pytest.mark.parametrize(
    "members",
    [
        [("l", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), ("l/passwd", b"x", {})],
        [("f", b"x", {}), ("f/g", b"x", {})],
        [("h", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})],
        [("h", b"", {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"})],
        [("d", b"", {"type": tarfile.DIRTYPE}), ("h", b"", {"type": tarfile.LNKTYPE, "linkname": "d"})],
        [("l", b"", {"type": tarfile.SYMTYPE, "linkname": "x" * 4096})],
        [("l", b"", {"type": tarfile.SYMTYPE, "linkname": ""})],
    ],
)
def test_a_link_that_leads_astray_refuses_the_archive(members):
    assert refused_with(archive(*members)) == "EINVAL"


def test_a_symlink_out_of_the_archive_stays_inside_when_followed():
    tree = TarTree(
        archive(
            ("up", b"", {"type": tarfile.SYMTYPE, "linkname": "../../../inside"}),
            ("inside", b"here", {}),
            ("host", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ),
        label="t",
    )
    assert read(at(tree, "up")) == b"here"
    with pytest.raises(FileNotFoundError):
        at(tree, "host")


def test_later_members_replace_earlier_ones():
    tree = TarTree(
        archive(
            ("a", b"old", {}),
            ("a", b"newer", {}),
            ("d", b"", {"type": tarfile.DIRTYPE, "mode": 0o700}),
            ("d/f", b"kept", {}),
            ("d", b"", {"type": tarfile.DIRTYPE, "mode": 0o750}),
        ),
        label="t",
    )
    assert read(at(tree, "a")) == b"newer"
    assert read(at(tree, "d/f")) == b"kept"
    assert start(at(tree, "d").stat()).st_mode == stat.S_IFDIR | 0o750
    assert start(tree.root.stat()).st_nlink == 3


def test_absurd_attributes_are_made_harmless():
    for mtime in ("nan", "inf", "-inf", "1e300"):
        tree = TarTree(archive(("f", b"", {"pax_headers": {"mtime": mtime, "uid": "99999999999"}})), label="t")
        st = start(at(tree, "f").stat())
        assert (st.st_mtime_ns, st.st_uid) == (0, 65534)
    device = {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}
    node = at(TarTree(archive(("null", b"", device)), label="t"), "null")
    assert start(node.stat()).st_rdev == os.makedev(1, 3)
    with pytest.raises(OSError) as caught:
        start(node.open(os.O_RDONLY, ROOT))
    assert caught.value.errno == errno.ENXIO


def test_every_truncation_is_refused_or_leaves_whole_members():
    whole = archive(("a", b"x" * 2000, {}), ("b", b"y" * 3000, {})).getvalue()
    for length in range(0, 8192, 100):
        try:
            tree = TarTree(io.BytesIO(whole[:length]), label="t")
        except OSError as error:
            assert error.errno == errno.EINVAL
            continue
        for entry in start(tree.root.readdir(ROOT)):
            node = start(tree.root.lookup(entry.name, ROOT))
            assert len(read(node)) == start(node.stat()).st_size


def test_every_flipped_header_byte_is_refused_or_read_without_harm():
    whole = bytearray(archive(("a", b"x" * 100, {}), ("b", b"y" * 100, {}), format=tarfile.GNU_FORMAT).getvalue())
    for position in range(1536):
        hostile = bytearray(whole)
        hostile[position] ^= 0xFF
        try:
            tree = TarTree(io.BytesIO(hostile), label="t")
        except OSError as error:
            assert error.errno in (errno.EINVAL, errno.EFBIG)
            continue
        for entry in start(tree.root.readdir(ROOT)):
            start(start(tree.root.lookup(entry.name, ROOT)).stat())


def test_a_header_that_claims_gigabytes_is_refused_before_it_is_read():
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    info.size = 8 << 30
    assert refused_with(io.BytesIO(info.tobuf() + bytes(1024))) == "EINVAL"


def test_headers_nested_without_end_are_refused():
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 2
    assert refused_with(io.BytesIO((info.tobuf(tarfile.GNU_FORMAT) + b"a\0" + bytes(510)) * 3000)) == "EINVAL"


def test_bounds_on_members_and_unpacked_size(monkeypatch):
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w:gz") as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 20 << 20
        tar.addfile(info, io.BytesIO(bytes(20 << 20)))
    bomb.seek(0)
    assert refused_with(bomb, max_bytes=1 << 20) == "EFBIG"
    monkeypatch.setattr(tarball, "MAX_MEMBERS", 10)
    assert refused_with(archive(*((str(n), b"", {}) for n in range(11)))) == "EFBIG"


@pytest.mark.parametrize("data", [b"", b"text", b"\x1f\x8bnot gzip", b"BZhnot bzip2", b"\xfd7zXZ\0", os.urandom(5000)])
def test_what_is_no_archive_is_einval(data):
    assert refused_with(io.BytesIO(data)) == "EINVAL"


def test_an_archive_that_is_cut_while_open_is_eio_not_zeros(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(archive(("f", b"x" * 5000, {})).getvalue())
    node = at(TarTree(path, label="t"), "f")
    os.truncate(path, 1000)
    with pytest.raises(OSError) as caught:
        read(node)
    assert caught.value.errno == errno.EIO


def test_a_dropped_tree_leaves_no_descriptor():
    gc.collect()  # what the errors of other tests still hold
    before = set(os.listdir("/proc/self/fd"))
    tree = TarTree(archive(("f", b"x", {})), label="t")
    file = at(tree, "f")
    del tree
    assert read(file) == b"x"
    del file
    assert set(os.listdir("/proc/self/fd")) == before
