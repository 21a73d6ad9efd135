import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import threading

libc = ctypes.CDLL(None, use_errno=True)


def show(call, *arguments):
    try:
        print(call.__name__, call(*arguments))
    except OSError as error:
        print(call.__name__, errno.errorcode[error.errno])


def put(name, text):
    with open(name, "w") as file:
        file.write(text)


def get(name):
    with open(name) as file:
        return file.read()


def hash_of(name):
    return hashlib.sha256(get(name).encode()).hexdigest()


def renameat2(old, new, flags):
    if libc.renameat2(-100, old.encode(), -100, new.encode(), flags):
        raise OSError(ctypes.get_errno(), "")


NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
put("a", "a")
put("b", "b")
show(renameat2, "a", "b", NOREPLACE)
show(renameat2, "a", "b", EXCHANGE)
show(renameat2, "a", "b", EXCHANGE | NOREPLACE)
show(renameat2, "a", "b", EXCHANGE | WHITEOUT)
print(get("a"), get("b"))
show(renameat2, "a", "c", NOREPLACE)
print(sorted(os.listdir(".")))

show(os.link, "b", "c")
show(os.symlink, "x", "b")
show(os.mkdir, "b")
show(os.open, "b", os.O_CREAT | os.O_EXCL)
show(os.open, "b/x", os.O_RDONLY)
show(os.open, ".", os.O_WRONLY)
show(os.open, "c", os.O_DIRECTORY)
show(os.rmdir, "b")
show(os.open, "x" * 256, os.O_CREAT)
os.mkdir("d")
show(os.rename, "d", "d/e")
show(os.unlink, "d")
show(os.rename, "b", "d")
show(os.rename, "d", "b")

fd = os.open("c", os.O_RDWR)
os.write(fd, b"mapped")
os.ftruncate(fd, 8192)
with mmap.mmap(fd, 8192) as mapped:
    mapped[4096:4100] = b"page"
    mapped.flush()
    print(os.pread(fd, 6, 0), os.pread(fd, 5, 4095), mapped[:6])
show(os.pread, fd, 1, 8192)
show(os.lseek, fd, 0, os.SEEK_END)
show(os.pwritev, fd, [b"x", b"y"], 9000)
print(os.fstat(fd).st_size)
os.fsync(fd)
os.fdatasync(fd)
print(os.isatty(fd))
fcntl.lockf(fd, fcntl.LOCK_EX, 10)
put("long", "0123456789" * 30_000)
source, target = os.open("long", os.O_RDONLY), os.open("copied", os.O_RDWR | os.O_CREAT)
show(os.copy_file_range, source, target, 100_000, 7, 3)
show(os.copy_file_range, source, target, 1 << 20, 250_001, 100_003)
show(os.copy_file_range, source, target, 5, 300_000, 0)
show(os.copy_file_range, target, source, 5)
print(os.fstat(target).st_size, hash_of("copied"), hash_of("long"))
os.copy_file_range(target, target, 10, 0, 50_000)
print(os.pread(target, 12, 49_999))
os.unlink("copied")
os.unlink("long")
fcntl.flock(fd, fcntl.LOCK_SH)
appending = os.open("c", os.O_WRONLY | os.O_APPEND)
os.write(appending, b"end")
print(os.pread(fd, 9, 9002))
old = os.stat("c")
os.utime("c", ns=(1, 2))
new = os.stat("c")
print(new.st_atime_ns, new.st_mtime_ns, new.st_ctime_ns >= old.st_ctime_ns)


def many(k):
    for number in range(50):
        put(f"t{k}-{number}", f"{k}{number}")
    for number in range(50):
        assert get(f"t{k}-{number}") == f"{k}{number}"
        os.unlink(f"t{k}-{number}")


threads = [threading.Thread(target=many, args=(k,)) for k in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(os.listdir(".")))

os.mkdir("w")
os.chdir("w")
os.rmdir("../w")
show(os.getcwd)
show(os.listdir, ".")
show(os.open, "new", os.O_CREAT)
