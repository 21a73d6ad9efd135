"""Sessions: durable homes of one user each, in which an agent works off prompts.

A session is a user, a home (0700) and the server's record of both. One task
is its agent; what it was asked (turns) and what came of it stands in the
chronicle, which everything that shows a session derives from.
"""
