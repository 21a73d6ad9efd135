"""TaskService and WorkerService: what clients ask, with the role that each question needs."""

from collections.abc import AsyncIterator

from wanixfs.control.credentials import Role
from wanixfs.control.lifecycle import is_over, live_runs
from wanixfs.control.model import RunId, TaskId, Worker, WorkerId
from wanixfs.control.plane import ControlPlane
from wanixfs.control.proto import convert
from wanixfs.control.proto import taskrun_v1_pb2 as pb
from wanixfs.control.proto import taskrun_v1_pb2_grpc as rpc
from wanixfs.control.security.access import Access
from wanixfs.control.service.bells import Bells
from wanixfs.control.service.guard import Context, answered, client


class TaskService(rpc.TaskServiceServicer):
    def __init__(self, plane: ControlPlane, access: Access, bells: Bells) -> None:
        self._plane = plane
        self._access = access
        self._bells = bells

    async def CreateTask(self, request: pb.CreateTaskRequest, context: Context) -> pb.Task:
        async with answered(context):
            name = await client(self._access, context, Role.SUBMIT)
            return convert.task_to(await self._plane.submit(convert.spec(request, name)))

    async def GetTask(self, request: pb.GetTaskRequest, context: Context) -> pb.Task:
        async with answered(context):
            await client(self._access, context, Role.READ)
            return convert.task_to(await self._plane.task(TaskId(request.id)))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        async with answered(context):
            await client(self._access, context, Role.READ)
            status = convert.task_status(request.status_filter)
            tasks = await self._plane.tasks(status=status, agent=request.agent_filter, limit=request.limit or 100)
            return pb.ListTasksResponse(tasks=map(convert.task_to, tasks))

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Context) -> pb.Task:
        async with answered(context):
            name = await client(self._access, context, Role.SUBMIT)
            return convert.task_to(await self._plane.cancel(TaskId(request.id), f"cancelled by {name}"))

    async def WatchTask(self, request: pb.WatchTaskRequest, context: Context) -> AsyncIterator[pb.Task]:
        async with answered(context):
            await client(self._access, context, Role.READ)
            with self._bells.listening(f"task/{request.id}") as changed:
                shown = None
                while True:
                    changed.clear()
                    task = await self._plane.task(TaskId(request.id))
                    if task != shown:
                        yield convert.task_to(task)
                    shown = task
                    if is_over(task.status) and not live_runs(task):
                        return
                    await changed.wait()

    async def StreamOutput(self, request: pb.StreamOutputRequest, context: Context) -> AsyncIterator[pb.RunOutputChunk]:
        async with answered(context):
            await client(self._access, context, Role.READ)
            run_id, since = RunId(request.run_id), request.since_seq
            with self._bells.listening(f"task/{(await self._plane.run(run_id)).task_id}") as changed:
                while True:
                    changed.clear()
                    run = await self._plane.run(run_id)
                    chunks = await self._plane.output(run_id, since=since)
                    for chunk in chunks:
                        yield convert.chunk_to(chunk)
                        since = chunk.seq + 1
                    if not chunks:
                        if request.only_kept or is_over(run.status):
                            return
                        await changed.wait()


class WorkerService(rpc.WorkerServiceServicer):
    def __init__(self, plane: ControlPlane, access: Access) -> None:
        self._plane = plane
        self._access = access

    async def _shown(self, worker: Worker) -> pb.Worker:
        return convert.worker_to(worker, len(await self._plane.runs_of(worker.id)))

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        async with answered(context):
            await client(self._access, context, Role.READ)
            status = convert.worker_status(request.status)
            named = [
                await self._shown(worker)
                for worker in await self._plane.workers()
                if request.agent_name in ("", *(agent.name for agent in worker.agents))
            ]
            return pb.ListWorkersResponse(
                workers=[each for each in named if status in (None, convert.worker_status(each.status))]
            )

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.Worker:
        async with answered(context):
            await client(self._access, context, Role.READ)
            return await self._shown(await self._plane.worker(WorkerId(request.worker_id)))

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> pb.Worker:
        async with answered(context):
            await client(self._access, context, Role.ADMIN)
            worker_id = WorkerId(request.worker_id)
            return await self._shown(await self._plane.drain(worker_id, draining=not request.undo))
