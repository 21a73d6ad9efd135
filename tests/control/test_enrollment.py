"""How a machine becomes a worker, over the network."""

import asyncio
import json
import ssl
from errno import EACCES
from http.client import HTTPSConnection

import grpc
import pytest
from peers import SECONDS, Stream, channel, client, on_plane

from wanixfs.control.credentials import Role
from wanixfs.control.joining import join
from wanixfs.control.proto import taskrun_v1_pb2 as pb
from wanixfs.control.proto import taskrun_v1_pb2_grpc as rpc
from wanixfs.control.security.authority import KeyPair, new_key, request, serial_of, worker_of
from wanixfs.control.security.tokens import BearerToken
from wanixfs.control.service.enrollment import MAX_BODY
from wanixfs.control.service.server import Serving

HOST = "127.0.0.1"


def posted(port: int, body: bytes) -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = HTTPSConnection(HOST, port, context=context, timeout=SECONDS)
    try:
        connection.request("POST", "/v1/enroll", body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_token_makes_a_machine_a_worker_that_renews_before_it_breaks() -> None:
    async def body(serving: Serving) -> None:
        token = await serving.access.issue(Role.ENROLL, "w1")
        pair, authority = await asyncio.to_thread(join, HOST, serving.ports.enrollment, token)
        assert (worker_of(pair.certificate), authority) == ("w1", serving.access.authority)
        async with channel(serving.ports.workers, authority, pair) as opened:
            stream = Stream(opened)
            await stream.hello("w1")
            await stream.hear("ack")
            key = new_key()
            asked = pb.RenewRequest(csr=request(key, "w1"))
            renewed = await rpc.RunServiceStub(opened).Renew(asked, timeout=SECONDS)
            assert serial_of(renewed.worker_cert) != serial_of(pair.certificate)
            async with channel(serving.ports.workers, authority, KeyPair(key, renewed.worker_cert)) as after:
                next_stream = Stream(after)
                await next_stream.hello("w1")
                await next_stream.hear("ack")
                stream.cut()
                async with client(serving) as me:
                    task = await me.create()
                given = (await next_stream.hear("assign_run")).assign_run
                assert given.task_id == task.id

    on_plane(body)


def test_a_token_is_told_to_no_other_plane() -> None:
    async def body(serving: Serving) -> None:
        token = await serving.access.issue(Role.ENROLL, "w1")
        other = BearerToken(token.secret, "0" * 64)
        with pytest.raises(OSError, match="not the one that gave out the token") as refused:
            await asyncio.to_thread(join, HOST, serving.ports.enrollment, other)
        assert refused.value.errno == EACCES
        await asyncio.to_thread(join, HOST, serving.ports.enrollment, token)
        with pytest.raises(OSError, match="has been used"):
            await asyncio.to_thread(join, HOST, serving.ports.enrollment, token)

    on_plane(body)


def test_refusals_are_told_by_their_status() -> None:
    async def body(serving: Serving) -> None:
        async def status(**words: object) -> int:
            return await asyncio.to_thread(posted, serving.ports.enrollment, json.dumps(words).encode())

        token = await serving.access.issue(Role.ENROLL, "w1")
        csr = request(new_key(), "w1").decode()
        assert await status(bootstrap_token=str(token)) == 400
        assert await status(bootstrap_token=str(token), csr="rubbish") == 400
        assert await status(bootstrap_token="rubbish", csr=csr) == 401
        assert await status(bootstrap_token=f"{'x' * 43}.{token.fingerprint}", csr=csr) == 401
        assert await asyncio.to_thread(posted, serving.ports.enrollment, b"x" * (MAX_BODY + 1)) == 400
        assert await status(bootstrap_token=str(token), csr=csr) == 200
        assert await status(bootstrap_token=str(token), csr=csr) == 409

    on_plane(body)


def test_administrators_alone_give_out_tokens_and_revoke() -> None:
    async def body(serving: Serving) -> None:
        asked = pb.IssueTokenRequest(role=pb.ROLE_ENROLL, name="w1")
        async with client(serving, Role.SUBMIT) as me:
            for call in (
                me.access.IssueToken(asked, metadata=me.metadata),
                me.access.RevokeWorker(pb.RevokeWorkerRequest(worker_id="w1"), metadata=me.metadata),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        async with client(serving, Role.ADMIN) as admin:
            answer = await admin.access.IssueToken(asked, metadata=admin.metadata)
            await asyncio.to_thread(join, HOST, serving.ports.enrollment, BearerToken.read(answer.token))
            revoked = await admin.revoke("w1")
            assert revoked.certificates == 1

    on_plane(body)
