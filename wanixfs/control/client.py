"""A client of a control plane, as commands use it: blocking calls, refusals as OSErrors."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EBUSY, ECONNREFUSED, EDQUOT, EEXIST, EINVAL, EIO, ENOENT, ETIMEDOUT

import grpc

from wanixfs.control.place import Profile
from wanixfs.control.proto import taskrun_v1_pb2_grpc as rpc
from wanixfs.control.security.authority import SERVER_NAME

ERRNO_OF = {
    grpc.StatusCode.INVALID_ARGUMENT: EINVAL,
    grpc.StatusCode.NOT_FOUND: ENOENT,
    grpc.StatusCode.PERMISSION_DENIED: EACCES,
    grpc.StatusCode.FAILED_PRECONDITION: EBUSY,
    grpc.StatusCode.ALREADY_EXISTS: EEXIST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: EDQUOT,
    grpc.StatusCode.DEADLINE_EXCEEDED: ETIMEDOUT,
    grpc.StatusCode.UNAVAILABLE: ECONNREFUSED,
}


class Client:
    """The services of a plane, and the metadata that every call of theirs takes."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self.tasks = rpc.TaskServiceStub(channel)
        self.workers = rpc.WorkerServiceStub(channel)
        self.access = rpc.AccessServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"),)


@contextmanager
def connected(profile: Profile) -> Iterator[Client]:
    """Give a client as long as the block lasts; what a call is refused with is raised as an OSError."""
    credentials = grpc.ssl_channel_credentials(profile.authority.encode())
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    with grpc.secure_channel(profile.address, credentials, options) as channel:
        try:
            yield Client(channel, profile.token)
        except grpc.RpcError as error:
            number = ERRNO_OF.get(error.code(), EIO)
            raise OSError(number, error.details() or error.code().name.lower()) from None
