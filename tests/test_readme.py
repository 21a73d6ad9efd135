"""The session in the README, typed line by line: it prints what the README says."""

import subprocess
from pathlib import Path

import pytest
from serving import ROOT, SECONDS, serving


def session() -> list[tuple[str, list[str]]]:
    """Return the README's typed lines, each with the lines printed after it."""
    steps: list[tuple[str, list[str]]] = []
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("    $ "):
            steps.append((line.removeprefix("    $ "), []))
        elif line.startswith("    ") and steps:
            steps[-1][1].append(line.removeprefix("    "))
        elif line and steps:
            break
    return steps


@pytest.mark.root
def test_session_prints_what_the_readme_says(tmp_path: Path) -> None:
    steps = session()
    assert len(steps) > 10
    tmp_path.chmod(0o755)
    script = "".join(f"{typed}\necho '\1'\n" for typed, _ in steps)
    with serving(tmp_path) as served:
        done = subprocess.run(
            ["/bin/sh"], input=script, cwd=served.mount, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    said = [part.splitlines() for part in done.stdout.split("\1\n")]
    assert (said[:-1], done.stderr) == ([printed for _, printed in steps], "")
