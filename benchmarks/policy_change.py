"""How long an edit of the watched mesh.yaml takes until it is in force in a hundred agents.

    python -m benchmarks.policy_change [--agents 100] [--processes 10] [--edits 20]

From the rename of the file on the config service's side to the swap of the policy in each agent: the look at the file,
its validation, the store, the signature, the poll that is answered, its verification, the compiled plan. Bar: "in force
within a second". Exit code 1 when it is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from .agents import AgentProcesses
from .asking import Asking
from .config_service import ConfigService
from .report import Bars, quantile, spread, tell
from .usage import Usage, end_tidily, open_files_max

IN_FORCE_S_MAX = 1.0
"""p99, over agents and edits, of the time from the rename until the edit is in force."""
START_WITHIN_S = 60.0
GIVE_UP_S = 10.0
PAUSE_S = (0.6, 1.2)
"""Between two edits, by chance, so that they come at any moment of whoever looks in turns."""


async def token(service: ConfigService, uses: int) -> str:
    """A join token of `app-0`."""
    asking = Asking(service)
    try:
        return str(await asking.token("app-0", uses))
    finally:
        await asking.close()


def edits(service: ConfigService, agents: AgentProcesses, everyone: range, count: int) -> tuple[list[float], int]:
    """Seconds until in force, over all edits and agents; how many never came."""
    times: list[float] = []
    lost = 0
    rng = random.Random(1)
    for number in range(count):
        time.sleep(rng.uniform(*PAUSE_S))
        timeout_s = 11.0 + number % 10
        renamed = service.change(timeout_s)
        found = agents.until(everyone, timeout_s, GIVE_UP_S)
        times += [at - renamed for at in found.values()]
        lost += len(everyone) - len(found)
        tell(f"edit {number + 1} of {count}: {spread([at - renamed for at in found.values()])}")
    return times, lost


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policy_change", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--processes", type=int, default=10, help="that the agents are spread over")
    parser.add_argument("--edits", type=int, default=20)
    options, bars = parser.parse_args(), Bars()
    end_tidily()
    open_files_max()
    everyone = range(options.agents)
    with tempfile.TemporaryDirectory(prefix="meshlib-bench-") as name, ConfigService(Path(name), "mtls") as service:
        token_file = Path(name) / "token"
        token_file.write_text(asyncio.run(token(service, options.agents)))
        tell(f"{options.agents} agents in {options.processes} processes start")
        began = time.monotonic()
        state = Path(name) / "state"
        with AgentProcesses(options.agents, options.processes, service.mesh_yaml, token_file, state) as agents:
            started = agents.until(everyone, 10.0, START_WITHIN_S)
            if len(started) < options.agents:
                raise TimeoutError(f"only {len(started)} agents have a policy:\n{service.log()}")
            print(
                f"{options.agents} agents, {options.edits} edits (agents started in {time.monotonic() - began:.1f} s)"
            )
            usage = Usage(service.pid)
            times, lost = edits(service, agents, everyone, options.edits)
            (cpu_s,), _ = usage.spent()
    print(
        f"  in force after: {spread(times, 1e3, 'ms', 0)}; {cpu_s / options.edits * 1e3:.0f} CPU ms of the service each"
    )
    bars.check("an edit is in force in every agent, p99", quantile(times, 0.99), IN_FORCE_S_MAX, "s")
    bars.check("agents in which an edit never was in force", lost, 0, digits=0)
    return bars.show()


if __name__ == "__main__":
    sys.exit(main())
