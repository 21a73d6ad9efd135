"""9P2000.L as one table: every message with its number and its fields, in the notation of its manual pages.

`name[1]`, `[2]`, `[4]`, `[8]` are unsigned little-endian integers of that many bytes; `[s]` a string (length[2] and
that many bytes), `[13]` a qid (type[1] version[4] path[8]), `[d]` data (count[4] and that many bytes), `[s*]` and
`[13*]` a count[2] and that many strings or qids. Every frame is size[4] type[1] tag[2] and then these fields.

Source: the 9P2000.L description of the diod project (protocol.md) and Linux' include/net/9p/9p.h.
"""

from typing import Final, NamedTuple

_TABLE = """
    7 Rlerror       ecode[4]
    8 Tstatfs       fid[4]
    9 Rstatfs       type[4] bsize[4] blocks[8] bfree[8] bavail[8] files[8] ffree[8] fsid[8] namelen[4]
   12 Tlopen        fid[4] flags[4]
   13 Rlopen        qid[13] iounit[4]
   14 Tlcreate      fid[4] name[s] flags[4] mode[4] gid[4]
   15 Rlcreate      qid[13] iounit[4]
   16 Tsymlink      dfid[4] name[s] target[s] gid[4]
   17 Rsymlink      qid[13]
   18 Tmknod        dfid[4] name[s] mode[4] major[4] minor[4] gid[4]
   19 Rmknod        qid[13]
   20 Trename       fid[4] dfid[4] name[s]
   21 Rrename
   22 Treadlink     fid[4]
   23 Rreadlink     target[s]
   24 Tgetattr      fid[4] request_mask[8]
   25 Rgetattr      valid[8] qid[13] mode[4] uid[4] gid[4] nlink[8] rdev[8] size[8] blksize[8] blocks[8]
                    atime_sec[8] atime_nsec[8] mtime_sec[8] mtime_nsec[8] ctime_sec[8] ctime_nsec[8]
                    btime_sec[8] btime_nsec[8] gen[8] data_version[8]
   26 Tsetattr      fid[4] valid[4] mode[4] uid[4] gid[4] size[8]
                    atime_sec[8] atime_nsec[8] mtime_sec[8] mtime_nsec[8]
   27 Rsetattr
   30 Txattrwalk    fid[4] newfid[4] name[s]
   31 Rxattrwalk    size[8]
   32 Txattrcreate  fid[4] name[s] attr_size[8] flags[4]
   33 Rxattrcreate
   40 Treaddir      fid[4] offset[8] count[4]
   41 Rreaddir      data[d]
   50 Tfsync        fid[4] datasync[4]
   51 Rfsync
   52 Tlock         fid[4] type[1] flags[4] start[8] length[8] proc_id[4] client_id[s]
   53 Rlock         status[1]
   54 Tgetlock      fid[4] type[1] start[8] length[8] proc_id[4] client_id[s]
   55 Rgetlock      type[1] start[8] length[8] proc_id[4] client_id[s]
   70 Tlink         dfid[4] fid[4] name[s]
   71 Rlink
   72 Tmkdir        dfid[4] name[s] mode[4] gid[4]
   73 Rmkdir        qid[13]
   74 Trenameat     olddirfid[4] oldname[s] newdirfid[4] newname[s]
   75 Rrenameat
   76 Tunlinkat     dirfid[4] name[s] flags[4]
   77 Runlinkat
  100 Tversion      msize[4] version[s]
  101 Rversion      msize[4] version[s]
  102 Tauth         afid[4] uname[s] aname[s] n_uname[4]
  103 Rauth         aqid[13]
  104 Tattach       fid[4] afid[4] uname[s] aname[s] n_uname[4]
  105 Rattach       qid[13]
  108 Tflush        oldtag[2]
  109 Rflush
  110 Twalk         fid[4] newfid[4] wname[s*]
  111 Rwalk         wqid[13*]
  116 Tread         fid[4] offset[8] count[4]
  117 Rread         data[d]
  118 Twrite        fid[4] offset[8] data[d]
  119 Rwrite        count[4]
  120 Tclunk        fid[4]
  121 Rclunk
  122 Tremove       fid[4]
  123 Rremove
"""
# Rlerror alone has no request of its own number - 1: it answers any request in place of its reply.


class Message(NamedTuple):
    """One row: its number, its name, and (field, kind) in wire order, `kind` being what stands in the brackets."""

    number: int
    name: str
    fields: tuple[tuple[str, str], ...]


def _rows() -> dict[int, Message]:
    rows: dict[int, Message] = {}
    number = 0
    for word in _TABLE.split():
        if word.isdigit():
            number = int(word)
        elif "[" in word:
            field, kind = word.rstrip("]").split("[")
            rows[number] = rows[number]._replace(fields=(*rows[number].fields, (field, kind)))
        else:
            rows[number] = Message(number, word, ())
    return rows


MESSAGES: Final = _rows()
NUMBER: Final = {message.name: number for number, message in MESSAGES.items()}

VERSION: Final = "9P2000.L"
NOTAG: Final = 0xFFFF
NOFID: Final = 0xFFFFFFFF
NONUNAME: Final = 0xFFFFFFFF
"""n_uname of a client that gives only a user's name."""
HEADER_SIZE: Final = 7
READ_OVERHEAD: Final = 24
"""Bytes of msize that a Tread, Twrite or Rreaddir may need beside its payload (IOHDRSZ)."""
MAX_MSIZE: Final = 1 << 20
MIN_MSIZE: Final = 4096 + READ_OVERHEAD
"""The least msize that holds every reply but payloads: a symlink's target is the longest."""
MAX_WALK: Final = 16

QTDIR: Final = 0x80
QTSYMLINK: Final = 0x02
QTFILE: Final = 0x00

GETATTR_BASIC: Final = 0x7FF
"""Rgetattr's mode, nlink, uid, gid, rdev, atime, mtime, ctime, ino, size and blocks are valid."""
SETATTR_MODE: Final = 0x001
SETATTR_UID: Final = 0x002
SETATTR_GID: Final = 0x004
SETATTR_SIZE: Final = 0x008
SETATTR_ATIME: Final = 0x010
SETATTR_MTIME: Final = 0x020
SETATTR_CTIME: Final = 0x040
SETATTR_ATIME_SET: Final = 0x080
"""The request carries the time; without this bit ATIME means now (MTIME alike)."""
SETATTR_MTIME_SET: Final = 0x100

# open(2) flags of Tlopen and Tlcreate, the same on every machine
DOTL_EXCL: Final = 0o200
DOTL_NONBLOCK: Final = 0o4000
DOTL_DIRECTORY: Final = 0o200000
DOTL_NOFOLLOW: Final = 0o400000
DOTL_OPEN: Final = 0o3 | 0o1000 | 0o2000 | DOTL_NONBLOCK
"""Access mode, O_TRUNC, O_APPEND and O_NONBLOCK: what a node is told of the flags."""
DOTL_AT_REMOVEDIR: Final = 0x200

LOCK_SUCCESS: Final = 0
LOCK_BLOCKED: Final = 1
LOCK_BLOCKING: Final = 1
"""Flag of Tlock: the caller wants to wait for the lock."""
