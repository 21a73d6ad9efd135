"""Write, walk, search and change a tree with Python's standard library; print what is seen, the same everywhere."""

import glob
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import zipfile

top = os.path.join(sys.argv[1], "tree")
for folder in ("a/b/c", "a/d", "empty", "ümlaut"):
    os.makedirs(os.path.join(top, folder))
for number in range(40):
    with open(f"{top}/a/d/file-{number:02}", "w") as file:
        file.write("line\n" * number)
with open(f"{top}/a/b/c/data", "wb") as file:
    file.write(bytes(range(256)) * 1000)
os.symlink("../b/c/data", f"{top}/a/d/link")
os.rename(f"{top}/a/d/file-39", f"{top}/empty/moved")
os.link(f"{top}/empty/moved", f"{top}/empty/twice")
os.utime(f"{top}/empty/moved", (1000, 2000))
shutil.copytree(f"{top}/a/b", f"{top}/copy")
with open(f"{top}/a/d/file-05", "r+") as file:
    file.seek(5)
    file.write("LINE")
    file.truncate(12)
with open(f"{top}/a/d/file-05", "a") as file:
    file.write("end")
for folder, folders, files in os.walk(top):
    folders.sort()
    print(os.path.relpath(folder, top), len(files), sorted(files)[:3])
    for name in sorted(files)[:3]:
        with open(os.path.join(folder, name), "rb") as file:
            print(" ", hashlib.sha256(file.read()).hexdigest()[:16])
st = os.stat(f"{top}/empty/twice")
print(st.st_size, st.st_nlink, st.st_mtime_ns, os.readlink(f"{top}/a/d/link"))
print(sorted(os.path.basename(path) for path in glob.glob(f"{top}/**/*-0[1-3]", recursive=True)))
with zipfile.ZipFile(f"{top}/all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.write(f"{top}/a/b/c/data", "data")
with zipfile.ZipFile(f"{top}/all.zip") as archive:
    print(archive.testzip(), [(entry.filename, entry.file_size) for entry in archive.infolist()])
base = sqlite3.connect(f"{top}/base.db")
base.execute("create table numbers (n integer primary key, square integer)")
with base:
    base.executemany("insert into numbers values (?, ?)", ((n, n * n) for n in range(2000)))
try:
    with base:
        base.execute("delete from numbers")
        raise KeyError("rolled back")
except KeyError:
    pass
print(
    base.execute("select count(*), sum(square) from numbers").fetchone(),
    base.execute("pragma integrity_check").fetchall(),
)
base.close()
for path in ("none", "a", "a/d/file-00/x"):
    try:
        open(os.path.join(top, path))
    except OSError as error:
        print(type(error).__name__)
print(json.dumps(sorted(entry.name for entry in os.scandir(top))))
shutil.rmtree(os.path.join(top, "a"))
print(sorted(os.listdir(top)))
