"""The trees that the server has for a runner, by the names under which it attaches to them."""

ROOT = "/"
"""The task's namespace."""
ERROR = "error"
"""A file that takes what is to be said of a trap; once written, the server knows."""
