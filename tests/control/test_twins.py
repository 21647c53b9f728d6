"""Two processes that call themselves the same are told of, within bounds."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from meshlib.control import twins as module
from meshlib.control.registry import Instance
from meshlib.control.twins import Twins

from .config_service import Follower, Service
from .virtual_time import run


def at(address: str, name: str = "a") -> Instance:
    return Instance(name, "inventory.default", address, "", 1, {})


def test_what_was_told_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """The oldest pair is forgotten, and told of again; the order of a pair does not matter."""
    monkeypatch.setattr(module, "PAIRS_MAX", 1)
    twins = Twins()
    with caplog.at_level(logging.WARNING, "meshlib.control"):
        for name in ("a", "a", "b", "a"):
            twins.look(at("1:1", name), at("2:2", name))
            twins.look(at("2:2", name), at("1:1", name))
    assert [message.split(" of ")[0] for message in caplog.messages] == ["instance a", "instance b", "instance a"]


def test_two_that_call_themselves_the_same_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Both addresses are named; one that went, or comes back where it was, is no second one. Nor another service's."""

    async def scenario(folder: Path) -> None:
        service = Service(folder)
        one, twin = (Follower(service, "inventory", "web-0", serial=serial) for serial in (1, 2))
        await Follower(service, "orders", "web-0").register("10.0.0.9:80")
        for _ in range(2):
            await one.register("10.0.0.1:80")
            await twin.register("10.0.0.2:80")
        await twin.client.told("POST", "/v1/deregister", {"instance": "web-0"})
        await one.register("10.0.0.3:80")
        await one.client.told("POST", "/v1/drain", {"instance": "web-0"})
        await one.register("10.0.0.4:80")
        await service.close()

    run(scenario(tmp_path))
    (said,) = [message for message in caplog.messages if "MESHLIB_INSTANCE" in message]
    assert "web-0 of inventory.default was at 10.0.0.1:80 and registers at 10.0.0.2:80" in said
