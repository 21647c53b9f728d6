"""The same application over static, dns, srv and registry endpoints, in processes of its own, with mTLS."""

from __future__ import annotations

import json

from discovery.name_server import name_server

from process.controlled import Controlled, lines_of

PROCESSES_MAX = 30
CALLER = """
import asyncio, json
from meshlib import Mesh

async def main():
    async with Mesh() as mesh:
        replies = [await mesh.client("backend").get("/who") for _ in range(40)]
        sources = mesh.config.services["backend.default"].endpoints
        by = sorted({kind for source in sources for kind in source.model_fields_set})
        print(json.dumps([by, sorted({(r.status_code, r.text) for r in replies})]), flush=True)

asyncio.run(main())
"""


def asking(names):
    """The field `dns` of a mesh.yaml."""
    return {"nameservers": [f"127.0.0.1:{names.port}"]}


def ask(world):
    """[sources of the policy in force, who answered] of one caller."""
    caller = world.run(CALLER, f"caller-{len(world.processes)}", **world.environment_of("caller"))
    assert caller.wait() == 0, caller.log()
    (said,) = lines_of(caller)
    return said


def test_one_application_over_every_source(tmp_path):
    """Who answers is the same, wherever the addresses come from."""
    with name_server() as names, Controlled(tmp_path, {"backend": {}}, dns=asking(names)) as world:
        one, two = world.serve("backend", 2)
        names.records["backend.test", "A"] = (5, ["127.0.0.1"])
        names.records["_http._tcp.backend.test", "SRV"] = (
            5,
            [f"0 1 {one.port} backend.test.", f"0 1 {two.port} backend.test."],
        )
        sources = {
            "registry": [{"registry": {}}],
            "static": [{"static": [one.address, two.address]}],
            "dns": [{"dns": f"backend.test:{process.port}"} for process in (one, two)],
            "srv": [{"srv": "_http._tcp.backend.test"}],
        }
        answers = {}
        for name, endpoints in sources.items():
            world.edit("backend", endpoints=endpoints)
            while (said := ask(world))[0] != [name]:
                assert len(world.processes) < PROCESSES_MAX, f"the policy with {name} does not arrive"
            answers[name] = said[1]
        print(json.dumps(answers))
        expected = [[200, "backend-0"], [200, "backend-1"]]
        assert answers == dict.fromkeys(sources, expected)
        assert {name for name, _, _ in names.asked} == {"backend.test", "_http._tcp.backend.test"}
