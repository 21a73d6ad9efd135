"""The FUSE kernel protocol over trees of nodes.

messages.py is the protocol as tables, session.py the protocol machine (bytes in, bytes out, no descriptor),
operations.py what each request means to a tree, journal.py what outlives the server, and devfuse.py the transport
over /dev/fuse. Another transport attaches a `session.Transport` and feeds `Session.receive`.
"""
