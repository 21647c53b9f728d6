"""The background thread and the watch of files."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from meshlib.agent import PARTS_MAX, Agent, FileWatch


def test_an_edit_is_told_once_after_it_settled(tmp_path: Path) -> None:
    """Seen by one look, told by the next: an editor that is still writing is waited for."""
    file = tmp_path / "mesh.yaml"
    file.write_text("a")
    watch = FileWatch([file])
    assert not watch.changed()
    file.write_text("ab")
    assert not watch.changed(), "told before it settled"
    file.write_text("abc")
    assert not watch.changed(), "told while it was still changing"
    assert watch.changed()
    assert not watch.changed(), "told twice"


def test_a_rename_over_the_file_and_a_removal_are_changes(tmp_path: Path) -> None:
    """Same size, same time, another file: the inode tells."""
    file, other = tmp_path / "mesh.yaml", tmp_path / "new"
    file.write_text("a")
    other.write_text("b")
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    watch = FileWatch([file])
    other.rename(file)
    assert [watch.changed(), watch.changed()] == [False, True]
    file.unlink()
    assert [watch.changed(), watch.changed()] == [False, True]


def test_of_a_directory_every_part_is_watched(tmp_path: Path) -> None:
    """Its *.yaml, valid or not, as they come, change in place and go; nothing else in it, and of very many not all."""
    (tmp_path / "a.yaml").write_text("a")
    watch = FileWatch([tmp_path])
    folder = tmp_path.stat()

    def looks(change: Callable[[], object]) -> list[bool]:
        change()
        os.utime(tmp_path, ns=(folder.st_atime_ns, folder.st_mtime_ns))
        return [watch.changed(), watch.changed(), watch.changed()]

    assert looks(lambda: (tmp_path / "a.yaml").write_text("ab")) == [False, True, False]
    assert looks(lambda: (tmp_path / "b.yaml").write_text("b")) == [False, True, False]
    assert looks(lambda: (tmp_path / "b.yaml").write_text("bc")) == [False, True, False]
    assert looks(lambda: (tmp_path / "b.yaml").unlink()) == [False, True, False]
    for other in (".c.yaml", "c.yaml~"):
        (tmp_path / other).write_text("c")
        assert [entry[0] for entry in watch._signature()] == [str(tmp_path), str(tmp_path / "a.yaml")]
    for name in range(PARTS_MAX):
        (tmp_path / f"{name}.yaml").touch()
    assert len(watch._signature()) == PARTS_MAX + 1


def test_the_agent_survives_errors_and_says_each_kind_once(caplog: pytest.LogCaptureFixture) -> None:
    """One broken look does not end the later ones, and does not fill the log."""
    looks, enough = [], threading.Event()

    def tick() -> None:
        looks.append(1)
        if len(looks) == 3:
            enough.set()
        raise ValueError("a look that breaks")

    with caplog.at_level(logging.ERROR, "meshlib"):
        agent = Agent(tick)
        assert enough.wait(10)
        agent.stop()
    assert len([record for record in caplog.records if "could not do its round" in record.message]) == 1
    assert not agent._thread.is_alive()
