"""Many sessions on few agents: those with nothing to do are stopped by policy, and resumed on demand as they were."""

import pytest
import trio
from sessions_node import linux_node
from test_agents import AGENT, ask

from tasks.sessions.states import State


@pytest.mark.parametrize(("sessions", "agents"), [(12, 3), pytest.param(200, 16, marks=pytest.mark.long)])
def test_sessions_without_work_give_their_place_and_come_back_on_demand(tmp_path, sessions, agents):
    async def main():
        async with linux_node(tmp_path, agent=AGENT, max_agents=agents, starts=4, switch_seconds=600.0) as node:
            names = [f"s{number}" for number in range(sessions)]

            async def every(work):
                some = trio.CapacityLimiter(2 * agents)  # more than can live at a time

                async def one(name):
                    async with some:
                        await work(name)

                async with trio.open_nursery() as nursery:
                    for name in names:
                        nursery.start_soon(one, name)

            async def tell(name):
                await node.sessions.open(name)
                await ask(node, name, f"my secret-{name}")

            async def recall(name):
                assert await ask(node, name, "secrets") == f"secret-{name}"

            await every(tell)
            assert living(node) <= agents
            states = [record.state for record in node.sessions.records()]
            assert states.count(State.IDLE) >= sessions - agents
            await every(recall)
            assert living(node) <= agents

    trio.run(main)


def living(node):
    return sum(task.state.live for task in node.house.service.tasks.values())
