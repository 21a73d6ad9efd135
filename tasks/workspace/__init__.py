"""Workspaces: a folder of the host and its copy in a session's home, kept in step both ways.

`plan` decides, `side` touches files, `passes` puts the two together and runs as a program of its own (`__main__`), so
that ten thousand files hold up nobody; `workspace` is what the server calls. The program needs only the standard
library and `vfs.syscalls`.
"""
