"""One trace over three services: web calls orders, orders calls stock; no application touches a header.

Spans go to memory here; in production to the exporter that OTEL_* names.
"""

import asyncio
import socket
import tempfile

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshlib import Mesh

CHAIN = {"web": "orders", "orders": "stock", "stock": None}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def service(name, below, policy):
    mesh = Mesh(name, policy)

    @mesh.get("/")
    async def handler():
        return [name] if below is None else [name, *(await mesh.client(below).get("/")).json()]

    return mesh


async def main(state_dir):
    ports = {name: free_port() for name in CHAIN}
    services = {name: {"endpoints": [{"static": [f"127.0.0.1:{port}"]}]} for name, port in ports.items()}
    policy = {"version": 1, "mesh": "shop", "services": services, "telemetry": {"tracing": {"sample": "100%"}}}
    meshes = [service(name, below, {**policy, "state_dir": state_dir}) for name, below in CHAIN.items()]
    servers = [asyncio.create_task(mesh.serve(port=port)) for mesh, port in zip(meshes, ports.values(), strict=True)]
    await asyncio.gather(*(mesh.ready() for mesh in meshes))
    print((await meshes[2].client("web").get("/")).json())  # anyone in the mesh may call
    assert not any(server.done() for server in servers)  # asyncio.run ends them


def show(spans, parent=None, depth=0):
    for span in sorted(spans, key=lambda span: span.start_time):
        if (span.parent.span_id if span.parent else None) == parent:
            print(f"{'  ' * depth}{span.kind.name} {span.name}")
            show(spans, span.context.span_id, depth + 1)


exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with tempfile.TemporaryDirectory() as state_dir:
    asyncio.run(main(state_dir))
spans = exporter.get_finished_spans()
print(f"traces: {len({span.context.trace_id for span in spans})}")
show(spans)
