"""One node's floors joined: the task service, its views, trees, devices and drivers."""

import grp
import os
import pwd
import stat as statmod
from collections.abc import Callable, Mapping
from errno import EACCES, EINVAL, ENOENT
from pathlib import Path

import structlog
import trio

from ns.mounts import DEVICE as DIAL
from ns.mounts import DialDevice
from ns.script import init_script
from ns.script import run as run_script
from tasks import devices as builtin
from tasks.caps import Caps
from tasks.drivers.base import Driver
from tasks.homes import Homes
from tasks.ports import Vault
from tasks.recovery import reconcile, replay
from tasks.service import Policy, TaskService
from tasks.sessions.chronicle import Chronicle
from tasks.sessions.service import Sessions
from tasks.sessions.tree import SessionTree
from tasks.sniff import sniff
from tasks.srv import Srv
from tasks.store import Journal
from tasks.task import Task
from tasks.taskd.privilege import one_user
from tasks.tree import TaskTree
from tasks.view import View
from tasks.views import Views
from tasks.workspace.folders import Folders
from vfs.directory import LiveDir
from vfs.host import HostTree
from vfs.hostmounts import HostMounts
from vfs.locks import LockTable
from vfs.memory import MemoryTree
from vfs.ninep import address
from vfs.ninep.access_token import authorised_path
from vfs.ninep.messages import NONUNAME
from vfs.ninep.peer import PeerCred, claimed_uid
from vfs.node import ROOT, Caller, Node, no_entry
from wanixfs.config import Config
from wanixfs.dialler import Dialler

log = structlog.get_logger("wanixfs")


class House:
    """Everything that is served. `open` before use; `nursery` carries connections dialled for mounts."""

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        state = config.state
        self.config = config
        self.locks = LockTable()
        self.drivers: dict[str, Driver] = {}
        self.devices: dict[str, Callable[[View], Node]] = {}
        self.views = Views(self.devices, admin_uid=os.geteuid())
        self.dialler = Dialler(nursery)
        self.srv = Srv(address.parse)
        self.journal = Journal(state / "journal.db")
        root = os.geteuid() == 0
        self.homes = Homes(
            state / "homes",
            first=config.first_uid,
            last=config.last_uid,
            privileged=root and not one_user(),
            roots=root,
        )
        self.service = TaskService(
            journal=self.journal,
            drivers=self.drivers,
            homes=self.homes,
            spools=_folder(state / "spools", 0o700),
            fork=self.views.fork,
            sniff=lambda task: sniff(task.namespace.root, task.spec),
            policy=Policy(
                grace=config.grace_seconds,
                keep_exited=config.keep_tasks,
                keep_seconds=config.keep_seconds,
                spool_limit=config.spool_limit,
            ),
        )
        self.sessions = Sessions(
            chronicle=Chronicle(state / "sessions.db"),
            service=self.service,
            writer=lambda: self.views.admin.namespace,
            kept=_folder(state / "artifacts", 0o700),
            policy=config.sessions,
            workspace=Folders(state / "workspaces"),
        )
        self.tree = TaskTree(self.service, makers=_group_id(config.group))

    async def open(self, drivers: Mapping[str, Driver], vault: Vault) -> None:
        """Build the init namespace and take up the tasks that an earlier server left. `drivers` go by task type."""
        self.drivers |= drivers
        self.service.vault = vault
        caps = Caps(journal=self.journal, vault=vault, dial=self._dial)
        self.service.on_removed.append(caps.remove_of)
        self._fill_devices(caps)
        script = self.config.namespace.read_text() if self.config.namespace else init_script()
        admin = self.views.admin
        await run_script(script, admin.namespace, writer=admin.namespace, who=ROOT)
        admin.namespace.fix()
        self.homes.shadowed = bool(admin.namespace.table.members("/home"))
        replay(self.service)
        await caps.recover(self.service.tasks)
        await reconcile(self.service, self._rebuild)
        self.sessions.load()

    def _fill_devices(self, caps: Caps) -> None:
        host = HostMounts()
        tmp = HostTree(_folder(self.config.state / "tmp", 0o1777), label="tmp")
        memory = MemoryTree(label="mem")
        self.devices |= {
            "task": self.tree.root,
            "cap": caps.tree,
            "srv": lambda view: self.srv,
            "sessions": SessionTree(self.sessions).root,
            "host": lambda view: host.root(),
            "tmp": lambda view: tmp.root,
            "mem": lambda view: memory.root,
            "home": self._homes,
            "dev": builtin.dev,
            "etc": builtin.etc,
            DIAL: lambda view: DialDevice(self._dial),
        }

    async def _dial(self, address: str, aname: str, who: Caller) -> Node:
        """Dial an address, or the one that is posted as `/srv/NAME`."""
        if address.startswith("/srv/"):
            address = self.srv.address(address.removeprefix("/srv/"))
        return await self.dialler.dial(address, aname, who)

    def _homes(self, view: View) -> Node:
        """Return the directory of the homes that `view` sees, by the id of the task that each was made for."""

        def users() -> dict[str, Task]:
            tasks = (task for task in self.service.tasks.values() if view.sees(task))
            return {task.spec.user.home: task for task in tasks if not os.path.isabs(task.spec.user.home)}

        def home(name: str, who: Caller) -> Node:
            task = self.service.find(name, None)  # whom the home was made for; when it is gone, whoever still has it
            if task is None or task.spec.user.home != name or not view.sees(task):
                task = users().get(name)
            if task is None:
                raise no_entry(name)
            return self.homes.node(task.spec.user)

        return view.node("home", lambda: LiveDir(users, home, kind=statmod.S_IFDIR, mode=0o755))

    def close(self) -> None:
        """Close what is kept on disk."""
        self.sessions.chronicle.close()
        self.journal.close()

    async def _rebuild(self, task: Task, script: str) -> None:
        """Make a task's namespace again from its script, with the administrator's authority."""
        try:
            await run_script(script, task.namespace, writer=self.views.admin.namespace, who=ROOT)
        except OSError as error:
            task.error = f"the namespace could not be made again: {error.strerror}"
            log.warning("namespace lost", task=task.id, error=str(error))

    def task_root(self, name: str) -> Node:
        """Return the namespace of the task with that id, as the task sees it. ENOENT."""
        task = self.service.find(name, None) if name.isdigit() else None
        if task is None:
            raise no_entry(name)
        return task.namespace.root

    async def attach(
        self, token: str, uname: str, n_uname: int, aname: str, peer: PeerCred | None
    ) -> tuple[Node, Caller]:
        """Decide what a 9P client gets: `aname` is `/` or `task/ID`; over TCP followed by `?TOKEN`.

        EACCES without the token or for another user's task, EPERM for another user's name, ENOENT.
        """
        if peer is None:
            aname = authorised_path(aname, token)
            uid = _uid_of(uname) if n_uname == NONUNAME else n_uname
        else:
            uid = claimed_uid(peer, n_uname)
        if one_user() and (peer is None or peer.uid == 0):
            uid = 0  # whose number is another outside
        who = caller_of(uid)
        kind, _, name = aname.strip("/").partition("/")
        if not kind:
            return self.views.admin.namespace.root, who
        if kind != "task":
            raise OSError(ENOENT, f"no such tree: {aname[:64]!r} (/ or task/ID)")
        root = self.task_root(name)
        if who.uid not in (0, self.service.tasks[int(name)].uid):
            raise OSError(EACCES, "another user's task")
        return root, who


def caller_of(uid: int) -> Caller:
    """Return the identity of a user of this machine; whoever runs the server is its root."""
    if uid in (0, os.geteuid()):
        return ROOT
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Caller(uid, uid)
    return Caller(uid, entry.pw_gid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def _uid_of(uname: str) -> int:
    """Return the uid of a user name, the administrator's for none. EACCES for an unknown one."""
    if not uname:
        return 0
    try:
        return pwd.getpwnam(uname).pw_uid
    except KeyError:
        raise OSError(EACCES, f"no such user: {uname[:64]!r}") from None


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise OSError(EINVAL, f"no such group: {name!r}") from None


def _folder(path: Path, mode: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path
