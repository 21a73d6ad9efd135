"""A node whose tasks are fake, served over HTTP in this process, and a client that sees every byte."""

import json
from contextlib import asynccontextmanager

import h11
import trio

from tasks.drivers.fake import FakeDriver
from tasks.ports import NoVault
from tasks.sessions.policy import Policy
from vfs.ninep import address
from wanixfs.config import Config
from wanixfs.house import House
from wanixfs.http.app import application
from wanixfs.http.server import serving

TOKEN = "secret-token"
SCRIPT = "bind #task /task\nbind #cap /cap\nbind #tmp /tmp\nbind -r #task /seen\n"
SECONDS = 20
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Answer:
    """One answer, its head here and its body to be read."""

    def __init__(self, web, connection, head):
        self._web = web
        self._connection = connection
        self.status = head.status_code
        self.headers = {name.decode(): value.decode() for name, value in head.headers}

    async def piece(self):
        """Return the next bytes of the body, b"" at its end."""
        while True:
            event = await self._web.event(self._connection)
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""

    async def body(self):
        data = b""
        while piece := await self.piece():
            data += piece
        return data

    async def json(self):
        return json.loads(await self.body())

    async def until(self, text):
        """Read on until `text` has come; return all that came."""
        data = b""
        while text.encode() not in data:
            piece = await self.piece()
            assert piece, f"ended before {text!r}: {data!r}"
            data += piece
        return data.decode()


class Client:
    """One connection to the server."""

    def __init__(self, stream, host):
        self._stream = stream
        self._host = host
        self._connection = h11.Connection(h11.CLIENT)

    async def event(self, connection):
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await self._stream.receive_some(65536))
        return event

    async def ask(self, method, path, body=None, *, finish=True, **headers):
        """Send a request and return its answer's head. `headers`: `_` for `-`, and the token unless told otherwise."""
        given = {"host": self._host, **BEARER}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        if "transfer-encoding" not in given and (data or method in ("POST", "PUT")):
            given.setdefault("content-length", str(len(data)))
        if self._connection.our_state is h11.DONE:
            self._connection.start_next_cycle()
        pairs = [(name, value) for name, value in given.items() if value is not None]
        request = h11.Request(method=method, target=path, headers=pairs)
        await self._stream.send_all(self._connection.send(request) + (self._connection.send(h11.Data(data)) or b""))
        if finish:
            await self._stream.send_all(self._connection.send(h11.EndOfMessage()) or b"")
        return Answer(self, self._connection, await self.event(self._connection))

    async def close(self):
        await self._stream.aclose()


class Web:
    """A served node."""

    def __init__(self, house, driver, url):
        self.house = house
        self.driver = driver
        self.sessions = house.sessions
        self.url = url
        self.host = url.removeprefix("http://")

    @asynccontextmanager
    async def client(self):
        host, _, port = self.host.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            yield Client(stream, self.host)

    async def ask(self, method, path, body=None, **headers):
        """Ask on a connection of its own; return the status, the headers and the body, from JSON where it is that."""
        async with self.client() as client:
            answer = await client.ask(method, path, body, **headers)
            data = await answer.body()
            if answer.headers.get("content-type", "").startswith("application/json"):
                data = json.loads(data)
            return answer.status, answer.headers, data

    async def get(self, path, **headers):
        status, _, data = await self.ask("GET", path, **headers)
        assert status == 200, (path, status, data)
        return data

    async def started(self, count):
        """Wait until that many tasks were ever started; return the last."""
        while len(self.driver.tasks) < count:
            await self.house.service.changes.wait()
        return max(self.driver.tasks, key=int)

    async def until(self, holds):
        while not holds():
            await self.sessions.changed.wait()


@asynccontextmanager
async def web(tmp_path, survivor=None, names=("localhost", "127.0.0.1"), **policy):
    """Open a node over `tmp_path` and serve it; opened again with the driver that survived, it is the next server."""
    script = tmp_path / "init.ns"
    script.write_text(SCRIPT)
    config = Config(state=tmp_path / "state", listen=("unix!/nowhere",), namespace=script, sessions=Policy(**policy))
    config.state.mkdir(exist_ok=True)
    async with trio.open_nursery() as nursery:
        house = House(config, nursery)
        driver = FakeDriver(house.service, survivor)
        await house.open({"linux": driver}, NoVault())
        await nursery.start(house.service.run)
        await nursery.start(house.sessions.run)
        app = application(
            sessions=house.sessions,
            service=house.service,
            root=house.views.admin.namespace.root,
            token=TOKEN,
            names=names,
        )
        async with serving(app, address.listen(address.parse("tcp!127.0.0.1!0"))) as url:
            yield Web(house, driver, url)
        house.sessions.halt()
        nursery.cancel_scope.cancel()
    house.close()


def run(test, tmp_path, **options):
    """Run the coroutine function `test` with a served node."""

    async def main():
        with trio.fail_after(SECONDS):
            async with web(tmp_path, **options) as served:
                await test(served)

    trio.run(main)
