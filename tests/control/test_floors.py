"""What the control plane decides is free of transport, storage and event loop; and a node runs without any of it."""

import subprocess
import sys

DECIDES = ["model", "lifecycle", "credentials", "plane", "store", "store.base", "store.memory", "store.sqlite"]


def run_without(absent: tuple[str, ...], program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter that cannot import these modules."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in absent)
    command = [sys.executable, "-c", f"import sys; {blocked}\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_what_decides_knows_no_network_no_cryptography_and_no_loop() -> None:
    modules = ", ".join(f"wanixfs.control.{name}" for name in DECIDES)
    done = run_without(("grpc", "google.protobuf", "cryptography", "trio", "asyncio", "ssl"), f"import {modules}")
    assert done.returncode == 0, done.stderr


def test_the_program_and_its_commands_run_without_the_extra() -> None:
    program = """if True:
        import click, wanixfs.program
        from wanixfs.cli.app import COMMANDS, Program
        assert all(Program().get_command(click.Context(Program()), name) for name in COMMANDS)
    """
    done = run_without(("grpc", "google.protobuf", "cryptography"), program)
    assert done.returncode == 0, done.stderr
