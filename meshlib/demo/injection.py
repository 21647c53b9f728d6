"""The scene of the injected fault: a share of the calls fails on purpose, and no other does."""

from __future__ import annotations

from .census import total
from .shop import FAULT_SHARE
from .stage import IN_FORCE_S, SIGMAS, Scene, Stage, milliseconds, said, sigmas_off


def injected(stage: Stage) -> Scene:
    """An edit makes calls to storefront fail; what the shopper saw is compared with what its mesh says it did."""
    stage.say(f"a fault in mesh.yaml: {FAULT_SHARE:.0%} of the calls to storefront are answered 503")
    shopper = stage.shopper
    failed, before = shopper.failures, shopper.injected
    on_s = stage.in_force("storefront", lambda: stage.shop.inject(True))
    sample = shopper.sample(stage.plan.split_calls)
    stage.say("the fault is taken out of mesh.yaml")
    off_s = stage.in_force("storefront", lambda: stage.shop.inject(False))
    shopper.pause()
    seen, numbers = shopper.injected - before, list(shopper.injected_calls)
    counted = int(total(stage.census.scrape(shopper), "meshlib_faults_injected_total"))
    shopper.resume()
    shopper.wait_calls(stage.plan.after_calls)
    later, failed = shopper.injected - before - seen, shopper.failures - failed
    sigmas = sigmas_off(sample.injected, sample.ended, FAULT_SHARE)
    in_time = max(on_s, off_s) <= IN_FORCE_S
    return Scene(
        "an injected fault",
        f"{FAULT_SHARE:.0%} of the calls fail within {SIGMAS:.0f} σ, each named as injected by the shopper and by its "
        f"metrics, 0 others fail; on and off ≤ {IN_FORCE_S * 1e3:.0f} ms",
        f"{100 * sample.injected / max(1, sample.ended):.1f} % failed; {seen} named by the shopper, {counted} by its "
        f"metrics, {failed} others failed, {later} afterwards; "
        f"{said(on_s, 'on in', 'not on')}, {said(off_s, 'off in', 'not off')}",
        in_time and seen == counted > 0 and failed == later == 0 and sigmas <= SIGMAS,
        {
            "failures": failed, "injected": numbers, "counted": counted, "later": later, "calls": sample.ended,
            "of_these": sample.injected, "on_ms": milliseconds(on_s), "off_ms": milliseconds(off_s),
        },
    )  # fmt: skip
