"""WASI tasks: WebAssembly modules whose every file call goes to the task's namespace.

Read in this order: `driver` (the server's side), `modules` and `compiler`
(from a file to code), `zygote` and `runner` (the task's process), `preview1`
(what a module may call) over `descriptors`, `paths` and `client` (the tree, over 9P).
"""
