"""A machine that only talks: its guest is as hostile as the file `behaviour` beside it says. Standard library only."""

import json
import os
import selectors
import signal
import struct
import sys

CONTROL, MONITOR, FILES = 3, 4, 5
behaviour = open(os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "behaviour")).read().strip()
clone = "-incoming" in sys.argv


def send(fd, **message):
    os.write(fd, json.dumps(message).encode() + b"\n")


def monitor(message):
    send(MONITOR, **{"return": {}})
    if message["execute"].startswith("migrate") and message["execute"] != "migrate-set-capabilities":
        send(MONITOR, event="MIGRATION", data={"status": "completed"})
    if message["execute"] == "quit":
        sys.exit(0)


def control(message):
    op = message["op"]
    if op == "quit":
        sys.exit(0)
    if behaviour == "mute" and clone:
        return
    if behaviour == "dies" and op == "start":
        print("qemu: it burns", file=sys.stderr, flush=True)
        sys.exit(3)
    if behaviour == "lies" and clone:
        lie(message)
    if behaviour == "forges" and op == "start":
        forge()
    if behaviour == "hangs" and op == "ping":
        signal.pause()
    send(
        CONTROL, id=message.get("id"), ok={"figures": {"guest_x": "much", "guest_y": 3, "z": 1}} if op == "stat" else {}
    )
    if op == "start" and behaviour not in ("hangs", "waits"):
        os.write(1, b"hello\n")
        task = message["task"]
        send(CONTROL, event="exited", task=task, exit={"code": 5, "reason": "exited", "sent": {"out": 6}})


def lie(message):
    """Send what makes no sense, before the truth."""
    task = message.get("task", "t")
    os.write(CONTROL, b"no json\n\xff\xfe\n[]\n{}\n" + b"[" * 5000 + b"\n")
    for exit in (
        {"code": "x"},
        {"code": 999, "reason": ""},
        {"code": 0, "reason": "r" * 999},
        [],
        {"code": 0, "sent": 3},
    ):
        send(CONTROL, event="exited", task=task, exit=exit)
    send(CONTROL, event="exited", task="another", exit={"code": 1, "reason": "exited", "sent": {}})
    for number in (-1, 10**30, "1", None, 4.5):
        send(CONTROL, id=number, ok=7)


def text(word):
    return struct.pack("<H", len(word)) + word


def ask(kind, body):
    os.write(FILES, struct.pack("<IBH", 7 + len(body), kind, 1) + body)
    size, kind, _ = struct.unpack("<IBH", os.read(FILES, 7))
    return kind, os.read(FILES, size - 7)


def forge():
    """Say to be root, and make a file."""
    ask(100, struct.pack("<I", 65536) + text(b"9P2000.L"))
    ask(104, struct.pack("<II", 1, 0xFFFFFFFF) + text(b"root") + text(b"/") + struct.pack("<I", 0))
    ask(110, struct.pack("<IIH", 1, 2, 1) + text(b"tmp"))
    ask(14, struct.pack("<I", 2) + text(b"forged") + struct.pack("<III", os.O_RDWR, 0o4755, 0))


handlers = {CONTROL: control, MONITOR: monitor}
send(MONITOR, QMP={"version": {}})
selector = selectors.DefaultSelector()
for fd in handlers:
    selector.register(fd, selectors.EVENT_READ)
begun = dict.fromkeys(handlers, b"")
while True:
    for key, _ in selector.select():
        data = os.read(key.fd, 65536)
        if not data:
            sys.exit(0)
        *lines, begun[key.fd] = (begun[key.fd] + data).split(b"\n")
        for line in lines:
            handlers[key.fd](json.loads(line))
