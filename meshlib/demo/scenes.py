"""The scenes: what is done to the mesh while calls go on, what was promised of it, and what was measured.

Every figure is taken from the processes: from their `/metrics`, their certificates, their exit codes, or from the
replies. A scene holds when its own promise does; `0 failed calls` is part of all of them.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import injection, outage
from .census import Member, total
from .fleet import Replica
from .joining import join
from .stage import GIVE_UP_S, IN_FORCE_S, LOOK_S, SIGMAS, Scene, Stage, milliseconds, said, sigmas_off

ROTATED_S = 3.0
"""Promised: from the rotation until every process shows a new certificate. The config service asks processes to spread
their renewals, in a mesh of this size over a second."""
BACK_S = 5.0
"""Promised: from the moment a restarted replica listens until it is called again."""
DRAIN_S = 10.0


def steady(stage: Stage) -> Scene:
    """Calls reach every replica that may be called."""
    stage.say("calling: shopper → storefront → orders → inventory, storefront → prices (gRPC)")
    stage.shopper.resume()
    failed = stage.shopper.failures
    stage.shopper.wait_calls(stage.plan.steady_calls)
    busy = [r for r in stage.fleet.replicas if r.version != "v2"]  # which has weight 0 as yet
    served = {replica.name: int(stage.served(replica)) for replica in busy}
    failed = stage.shopper.failures - failed
    return Scene(
        "steady state",
        "0 failed calls, every replica that has a weight is called",
        f"{failed} failed, {sum(count > 0 for count in served.values())} of {len(served)} replicas called",
        failed == 0 and min(served.values()) > 0,
        {"failures": failed, "served": served},
    )


def canary(stage: Stage) -> Scene:
    """Weights are edited in the mesh.yaml that the config service watches; the split follows."""
    failed = stage.shopper.failures
    steps = [_shift(stage, percent) for percent in stage.plan.canary]
    failed = stage.shopper.failures - failed
    shares = ", ".join(f"{100 * step.v2 / max(1, step.calls):.1f}" for step in steps)
    slowest_s = max(step.in_force_s for step in steps)
    return Scene(
        "canary " + " → ".join(str(percent) for percent in stage.plan.canary) + " %",
        f"in force everywhere ≤ {IN_FORCE_S * 1e3:.0f} ms, split within {SIGMAS:.0f} σ, 0 failed",
        f"v2 took {shares} %, {said(slowest_s, 'in force ≤', 'not in force everywhere')} "
        f"in {len(stage.versions())} processes, {failed} failed",
        failed == 0 and all(step.held for step in steps),
        {"failures": failed, "processes": len(stage.versions()), "steps": [step.figures() for step in steps]},
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the canary: of `calls` that began when `percent` was in force, `v2` were answered by v2."""

    percent: int
    in_force_s: float
    calls: int
    v2: int

    @property
    def sigmas(self) -> float:
        """How far the split is off."""
        return sigmas_off(self.v2, self.calls, self.percent / 100)

    @property
    def held(self) -> bool:
        """Was it in force in time, and then kept?"""
        return self.in_force_s <= IN_FORCE_S and self.calls > 0 and self.sigmas <= SIGMAS

    def figures(self) -> dict[str, Any]:
        """As plain data; a split off by any number of σ that should be exact has `sigmas` null."""
        sigmas = None if self.sigmas == float("inf") else round(self.sigmas, 2)
        counted = {"percent": self.percent, "calls": self.calls, "v2": self.v2, "sigmas": sigmas}
        return {**counted, "in_force_ms": milliseconds(self.in_force_s), "held": self.held}


def _shift(stage: Stage, percent: int) -> Step:
    stage.say(f"canary: inventory v2 gets {percent} %")
    in_force_s = stage.edit(percent)
    versions = stage.shopper.sample(stage.plan.split_calls).versions
    return Step(percent, in_force_s, versions.total(), versions["v2"])


def killed(stage: Stage) -> Scene:
    """Replicas die without a word, one after the other, and come back."""
    failed, names = stage.shopper.failures, stage.plan.victims
    backs_s = [_kill(stage, stage.fleet.named(name)) for name in names]
    failed = stage.shopper.failures - failed
    back = [milliseconds(back_s) for back_s in backs_s]
    return Scene(
        "SIGKILL of " + ", ".join(names),
        f"0 failed calls; started elsewhere, they are called again ≤ {BACK_S * 1e3:.0f} ms after they listen",
        f"{failed} failed; {', '.join(said(back_s, 'called again after', 'not called again') for back_s in backs_s)}",
        failed == 0 and all(back_s <= BACK_S for back_s in backs_s),
        {"failures": failed, "victims": [{"replica": n, "back_ms": b} for n, b in zip(names, back, strict=True)]},
    )


def _kill(stage: Stage, replica: Replica) -> float:
    stage.say(f"SIGKILL of {replica.name} (pid {replica.pid})")
    stage.census.scrape(replica)
    replica.end(signal.SIGKILL, GIVE_UP_S)
    stage.shopper.wait_calls(stage.plan.down_calls)
    stage.say(f"starting {replica.name} again")
    back_s = _back_in_rotation(stage, replica)
    stage.shopper.wait_calls(stage.plan.after_calls)
    return back_s


def broken_edit(stage: Stage) -> Scene:
    """A mesh.yaml that cannot be used is refused by the config service, with the place of each mistake."""
    stage.say("a broken mesh.yaml: two weights that are none")
    failed, before = stage.shopper.failures, stage.versions()
    began = time.monotonic()
    stage.shop.write_mesh("fifty", "-50")
    refused_s = stage.until(began, lambda: bool(stage.control.status()["problems"]))
    places = [f"{problem['file']}:{problem['line']}" for problem in stage.control.status()["problems"]]
    stage.shopper.wait_calls(stage.plan.after_calls)
    kept = sum(a == b for a, b in zip(before, stage.versions(), strict=True))
    told = sum(total(stage.census.scrape(member), "meshlib_policy_rejected_total") for member in stage.members)
    stage.say("the mesh.yaml is mended")
    mended_s = stage.edit(50)
    failed = stage.shopper.failures - failed
    good = failed == told == 0 and kept == len(before) and len(places) == 2
    return Scene(
        "a broken edit of mesh.yaml",
        "the config service refuses it with file:line, no process gets it, 0 failed; "
        f"mended ≤ {IN_FORCE_S * 1e3:.0f} ms",
        f"{said(refused_s, 'refused in', 'not refused')} ({', '.join(map(_name_of, places))}), "
        f"{kept} of {len(before)} kept the last good one, {failed} failed; {said(mended_s, 'mended in', 'not mended')}",
        good and refused_s <= IN_FORCE_S and mended_s <= IN_FORCE_S,
        {
            "failures": failed, "processes": len(before), "kept": kept, "places": places,
            "refused_ms": milliseconds(refused_s), "mended_ms": milliseconds(mended_s),
        },
    )  # fmt: skip


def rotation(stage: Stage) -> Scene:
    """The authority asks for new certificates, and every process gets one while it is called."""
    stage.say("every certificate is rotated")
    failed, old = stage.shopper.failures, {member.name: stage.leaf(member).serial for member in stage.members}
    began, wall = time.monotonic(), int(time.time())
    generation = stage.control.ask("POST", "/v1/ca/rotate", {"root": False})["generation"]
    renewed: set[str] = set()

    def is_new(member: Member) -> bool:
        leaf = stage.leaf(member)
        if leaf.serial != old[member.name] and leaf.issued >= wall:
            renewed.add(member.name)
        return member.name in renewed

    new_s = stage.until_all(began, is_new)
    stage.shopper.wait_calls(stage.plan.after_calls)
    failed = stage.shopper.failures - failed
    return Scene(
        "rotation of every certificate",
        f"every process shows a new one of the config service's CA ≤ {ROTATED_S * 1e3:.0f} ms, 0 failed",
        f"{len(renewed)} of {len(old)} new ones{said(new_s, ' in', '')}, {failed} failed",
        failed == 0 and new_s <= ROTATED_S,
        {
            "failures": failed, "processes": len(old), "renewed": len(renewed), "generation": generation,
            "rotated_ms": milliseconds(new_s),
        },
    )  # fmt: skip


def drain(stage: Stage) -> Scene:
    """A replica is asked to end while it is called: it tells the config service, and that tells the others."""
    replica = stage.fleet.of("orders")[-1]
    stage.say(f"SIGTERM: {replica.name} drains")
    failed, began = stage.shopper.failures, time.monotonic()
    replica.send(signal.SIGTERM)
    while replica.alive and time.monotonic() < began + DRAIN_S:
        try:
            stage.census.scrape(replica)
        except OSError:  # it has closed its admin port, the last thing before it ends
            pass
        time.sleep(LOOK_S)
    took_s, code = time.monotonic() - began, replica.exit_code
    replica.kill()
    stage.shopper.wait_calls(stage.plan.after_calls)
    stage.say(f"starting {replica.name} again")
    back_s = _back_in_rotation(stage, replica)
    failed = stage.shopper.failures - failed
    return Scene(
        f"SIGTERM of {replica.name}",
        f"it drains and exits 0, 0 failed calls; started elsewhere, called ≤ {BACK_S * 1e3:.0f} ms",
        f"exit {'-' if code is None else code} after {took_s * 1e3:.0f} ms, {failed} failed; "
        f"{said(back_s, 'called again after', 'not called again')}",
        failed == 0 and code == 0 and back_s <= BACK_S,
        {"failures": failed, "exit": code, "drained_ms": milliseconds(took_s), "back_ms": milliseconds(back_s)},
    )


def counts(stage: Stage) -> Scene:
    """The calls stop for a moment; what the servers counted is compared with what the shopper did."""
    stage.say("comparing what was counted on both sides")
    shopper = stage.shopper
    shopper.wait_calls(max(0, stage.plan.calls_min - shopper.ended))
    shopper.pause()
    give_up = time.monotonic() + 2.0
    served = -1
    sent = shopper.calls - shopper.injected
    while served < sent and time.monotonic() < give_up:  # a server counts when its reply has been sent
        for member in stage.members:
            stage.census.scrape(member)
        served = stage.census.edges()["shopper", "storefront"]
    retried = stage.census.retries("shopper")
    return Scene(
        "the shopper counts, the servers count",
        "storefront served each call of the shopper once, and again only what was retried; none with an injected fault",
        f"{sent:,} calls sent, {retried} retried by the shopper, {served:,} served",
        sent <= served <= sent + retried and shopper.failures == 0,
        {"calls": sent, "retries": retried, "served": served, "failures": shopper.failures},
    )


SCENES: Sequence[Callable[[Stage], Scene]] = (
    join, steady, canary, broken_edit, injection.injected, rotation, killed, drain, outage.stopped, outage.killed,
    counts,
)  # fmt: skip


def _back_in_rotation(stage: Stage, replica: Replica) -> float:
    """Start it again, elsewhere; seconds from its listening to the first request that it has served."""
    replica.move()  # so that its callers must be told where
    stage.fleet.start([replica])
    return stage.until(time.monotonic(), lambda: stage.served(replica) > 0)


def _name_of(place: str) -> str:
    return place.rpartition("/")[2]
