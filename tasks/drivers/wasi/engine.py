"""The one configuration of wasmtime: code is compiled by one process and run by others, and they must agree."""

import wasmtime


def new_engine() -> wasmtime.Engine:
    """Return an engine for modules with one memory and one thread. Makes no thread itself, so it survives fork(2)."""
    config = wasmtime.Config()
    config.wasm_threads = False
    config.wasm_multi_memory = False
    config.wasm_memory64 = False
    config.parallel_compilation = False
    return wasmtime.Engine(config)
