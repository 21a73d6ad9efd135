"""Where a control plane lives on disk: its authority, its store, and the profile of its administrator."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from errno import EBUSY, EINVAL
from pathlib import Path

from wanixfs.control.security.authority import Authority, KeyPair


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a client needs: HOST:PORT, a token, and the certificate (PEM) of the authority that it pins."""

    address: str
    token: str
    authority: str

    @classmethod
    def read(cls, file: Path) -> "Profile":
        """Return the profile in a file. EINVAL: it is none. Else what opening raises."""
        try:
            found = cls(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise OSError(EINVAL, f"{file} is no profile of a control plane: {error}") from None
        if not all(isinstance(word, str) for word in asdict(found).values()):
            raise OSError(EINVAL, f"{file} is no profile of a control plane")
        return found

    def write(self, file: Path) -> None:
        """Put the profile into a file that nobody else may read."""
        put(file, json.dumps(asdict(self), indent=2).encode())


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of the plane's own, mode 0700."""

    directory: Path

    @property
    def store(self) -> Path:
        return self.directory / "plane.db"

    @property
    def profile(self) -> Path:
        return self.directory / "admin.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the directory and keep it for this process. EBUSY: another one has it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(EBUSY, f"another control plane is served from {self.directory}") from None
            yield

    def authority(self) -> Authority:
        """Return the plane's authority; make it at the first time."""
        file = self.directory / "authority.pem"
        if not file.exists():
            made = Authority.made().pair
            put(file, made.key + made.certificate)
        text = file.read_bytes()
        return Authority(KeyPair(text, text[text.index(b"-----BEGIN CERTIFICATE") :]))


def put(file: Path, content: bytes) -> None:
    """Replace a file whole, readable by its owner alone."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    new.rename(file)
