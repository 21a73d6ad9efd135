"""virtio devices for guests, served as vhost-user backends: a file tree (virtiofs) and sockets (vsock).

The guest's machine (QEMU, or any other that speaks vhost-user) shares the guest's memory with us; requests are taken
from its rings and answered there. No byte of it is trusted: see `ring` for what a guest may write.
"""
