"""AccessService: administrators give out tokens and revoke workers."""

from wanixfs.control.credentials import Role
from wanixfs.control.model import WorkerId
from wanixfs.control.plane import ControlPlane
from wanixfs.control.proto import convert
from wanixfs.control.proto import taskrun_v1_pb2 as pb
from wanixfs.control.proto import taskrun_v1_pb2_grpc as rpc
from wanixfs.control.security.access import Access
from wanixfs.control.service.bells import Bells
from wanixfs.control.service.guard import Context, answered, client


class AccessService(rpc.AccessServiceServicer):
    def __init__(self, plane: ControlPlane, access: Access, bells: Bells) -> None:
        self._plane = plane
        self._access = access
        self._bells = bells

    async def IssueToken(self, request: pb.IssueTokenRequest, context: Context) -> pb.IssueTokenResponse:
        async with answered(context):
            await client(self._access, context, Role.ADMIN)
            life_ms = max(0, request.life_ms)
            token = await self._access.issue(convert.role(request.role), request.name, life_ms=life_ms)
            return pb.IssueTokenResponse(token=str(token))

    async def RevokeWorker(self, request: pb.RevokeWorkerRequest, context: Context) -> pb.RevokeWorkerResponse:
        """Revoke a worker's certificates, end its streams and try its runs elsewhere."""
        async with answered(context):
            await client(self._access, context, Role.ADMIN)
            worker_id = WorkerId(request.worker_id)
            revoked = await self._access.revoke(worker_id)
            self._bells.ring(f"certificates/{worker_id}")
            await self._plane.forget(worker_id, "the worker is revoked")
            return pb.RevokeWorkerResponse(certificates=revoked)
