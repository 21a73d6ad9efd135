"""The one configuration of wasmtime: code is compiled by one process and run by others, and they must agree."""

import wasmtime


def new_engine(*, in_parallel: bool = False) -> wasmtime.Engine:
    """Return an engine for modules with one memory, which stays where it is, and one thread.

    It makes no thread itself, so it survives fork(2), unless it compiles `in_parallel`.
    """
    config = wasmtime.Config()
    config.wasm_threads = False
    config.wasm_multi_memory = False
    config.wasm_memory64 = False
    config.memory_may_move = False
    config.parallel_compilation = in_parallel
    return wasmtime.Engine(config)
