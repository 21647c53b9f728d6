"""The background thread and the watch of files."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from meshlib.agent import Agent, FileWatch


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
