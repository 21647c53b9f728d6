"""The watched mesh.yaml: what is told, when, and what is kept."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from meshlib.control.watch import PolicyWatch, Read, complete_text, parse_policy, read_policy
from meshlib.errors import ConfigError

from .config_service import MESH


class Watched:
    """A file that is watched, look by look. `told`: a policy's document, or the error."""

    def __init__(self, path: Path) -> None:
        self.told: list[Read | ConfigError] = []
        self.path = path
        self.watch = PolicyWatch(path, self.told.append)
        self.stamp = 0

    def write(self, text: str, file: Path | None = None) -> None:
        """Write, at another time than before, however fast this is."""
        file = file or self.path
        file.write_text(text)
        self.stamp += 1
        os.utime(file, (self.stamp, self.stamp))

    def look(self, times: int = 2) -> list[Read | ConfigError]:
        for _ in range(times):
            self.watch.look()
        told, self.told[:] = list(self.told), []
        return told


def test_an_edit_is_told_once_it_has_settled(tmp_path: Path):
    """One look sees it, the next that it has stayed; then it is told once."""
    file = tmp_path / "mesh.yaml"
    file.write_text(MESH)
    watched = Watched(file)
    assert watched.look() == []
    watched.write(MESH.replace("1s", "2s"))
    assert watched.look(1) == []
    (read,) = watched.look(3)
    assert isinstance(read, Read)
    assert (read.document, read.source) == (MESH.replace("1s", "2s"), str(file))


def test_what_does_not_validate_is_told_as_such(tmp_path: Path):
    """With every problem and its place; a file that is gone too; the mended one is told again."""
    file = tmp_path / "mesh.yaml"
    file.write_text(MESH)
    watched = Watched(file)
    watched.write(MESH.replace("1s", "soon"))
    (error,) = watched.look()
    assert isinstance(error, ConfigError)
    assert [problem.line for problem in error.problems] == [6]
    file.unlink()
    assert [type(one) for one in watched.look()] == [ConfigError]
    watched.write(MESH)
    assert [type(one) for one in watched.look()] == [Read]


def test_the_files_that_it_names_are_watched_too(tmp_path: Path):
    """An endpoint file is part of the policy: its edit is told, and the kept text needs no file."""
    file, endpoints = tmp_path / "mesh.yaml", tmp_path / "payments.json"
    endpoints.write_text('["10.0.0.1:80"]')
    file.write_text(
        MESH.replace("payments: {endpoints: [{registry: {}}]}", "payments: {endpoints: [{file: payments.json}]}")
    )
    watched = Watched(file)
    watched.watch.follow(read_policy(file))
    watched.write('["10.0.0.2:80"]', endpoints)
    (read,) = watched.look()
    assert isinstance(read, Read)
    kept = parse_policy(read.document, "stored")
    assert [one.address for one in kept.config.endpoints("payments.default")] == ["10.0.0.2:80"]


def test_a_directory_is_watched_for_new_files(tmp_path: Path):
    """A team's file that is added is part of the policy from then on."""
    folder = tmp_path / "mesh"
    folder.mkdir()
    (folder / "a.yaml").write_text(MESH)
    watched = Watched(folder)
    watched.watch.follow(read_policy(folder))
    watched.write("services: {stock: {}}\n", folder / "b.yaml")
    os.utime(folder, (5, 5))
    (read,) = watched.look()
    assert isinstance(read, Read)
    assert "stock.default" in read.config.services
    assert parse_policy(read.document, "stored").config.names() == read.config.names()


GOOD, BAD = "services: {stock: {timeout: 1s}}\n", "services: {stock: {timeout: soon}}\n"


def test_a_broken_part_is_watched_until_it_is_mended(tmp_path: Path):
    """A new part with a mistake, corrected in place: the directory itself does not change any more."""
    (tmp_path / "a.yaml").write_text(MESH)
    watched, part = Watched(tmp_path), tmp_path / "b.yaml"
    watched.write(BAD, part)
    assert [type(one) for one in watched.look()] == [ConfigError]
    folder = tmp_path.stat()
    watched.write(GOOD, part)
    os.utime(tmp_path, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    (read,) = watched.look()
    assert isinstance(read, Read)
    assert "stock.default" in read.config.services


def test_a_directory_that_is_broken_at_first_is_watched(tmp_path: Path):
    """What is told to be in force was made of none of its files."""
    part = tmp_path / "b.yaml"
    (tmp_path / "a.yaml").write_text(MESH)
    part.write_text(BAD)
    watched = Watched(tmp_path)
    watched.watch.follow(parse_policy(MESH, "stored"))
    watched.write(GOOD, part)
    assert [type(one) for one in watched.look()] == [Read]


@pytest.mark.parametrize("before", [None, "[1, 2]", "nonsense: ["])
def test_a_file_that_a_broken_policy_names_is_watched(tmp_path: Path, before: str | None):
    """It is missing or wrong when mesh.yaml begins to name it: that it is mended is seen, at the start and later."""
    file, endpoints = tmp_path / "mesh.yaml", tmp_path / "payments.json"
    text = MESH.replace("payments: {endpoints: [{registry: {}}]}", "payments: {endpoints: [{file: payments.json}]}")
    file.write_text(MESH)
    later = Watched(file)
    later.watch.follow(read_policy(file))
    if before is not None:
        endpoints.write_text(before)
    later.write(text)
    (error,) = later.look()
    assert isinstance(error, ConfigError)
    at_start = Watched(file)
    at_start.watch.follow(error)
    later.write('["10.0.0.1:80"]', endpoints)
    assert [type(one) for watched in (later, at_start) for one in watched.look()] == [Read, Read]


@pytest.mark.parametrize(
    "text", [MESH, "version: 1\nmesh: shop\n", MESH + "ca: {leaf_ttl: 5m, root_ttl: 1h30m}\nstate_dir: here\n"]
)
def test_the_complete_text_says_the_same(text: str):
    """Whatever the config service and its processes take from a file, they take from its complete text."""
    before = parse_policy(text, "mesh.yaml").config
    after = parse_policy(complete_text(before), "stored").config
    assert after.raw_policy() == before.raw_policy()
    for field in ("mesh", "trust_domain", "state_dir", "policy_source", "ca", "identity"):
        assert getattr(after, field) == getattr(before, field)
    assert (after.control and after.control.urls) == (before.control and before.control.urls)


def test_a_text_from_elsewhere_names_no_file():
    """It would be a file of the config service's machine."""
    with pytest.raises(ConfigError) as refused:
        parse_policy(MESH.replace("{registry: {}}", "{file: /etc/hostname}", 1), "<document>")
    assert refused.value.problems[0].path == "services.orders.endpoints[0].file"


def test_the_agent_looks_by_itself_until_it_is_stopped(tmp_path: Path):
    """Started, it tells an edit; stopped, it is gone."""
    file = tmp_path / "mesh.yaml"
    file.write_text(MESH)
    told, before = threading.Event(), set(threading.enumerate())
    watch = PolicyWatch(file, lambda read: told.set(), every_s=0.001)
    watch.start()
    file.write_text(MESH.replace("1s", "2s"))
    assert told.wait(10)
    watch.stop()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()]
