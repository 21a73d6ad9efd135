"""9P2000.L, both ends: a tree served to Linux kernels and 9P clients, and a remote tree used as a node.

Read in this order: `messages` (the protocol as one table), `codec` (frames from
that table), `session` (what a server owes its client, without a socket),
`server` (sockets), `client` and `remote` (the other end).
"""
