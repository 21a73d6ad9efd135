"""The file tree and its wire protocols. Knows nodes and bytes; knows nothing of tasks.

Start with `vfs.node` (the contract every file fulfils) and `vfs.inline` (how a
request runs without a task of its own until it has to wait).
"""
