"""The snapshot on disk: siblings share it, a disk may hold anything, and a write that would wait is not waited for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshlib.discovery import snapshot_file
from meshlib.discovery.fragment import Signed, peek
from meshlib.discovery.snapshot_file import NAME, read_snapshot, write_snapshot
from meshlib.identity.private_folder import locked


def signed(service: str, n: int = 1, size: int = 0) -> Signed:
    payload = {"resource": f"endpoints/{service}.default", "epoch": "e", "n": n, "mesh": "shop", "content": "x" * size}
    return Signed(json.dumps(payload), "signature", "chain")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    folder = tmp_path / "orders"
    folder.mkdir(mode=0o700)
    return folder


def held(folder: Path) -> dict[str, int]:
    return {found[0]: found[1][1] for fragment in read_snapshot(folder) if (found := peek(fragment))}


def test_a_sibling_keeps_what_it_does_not_follow(folder: Path) -> None:
    """Two processes of one service, which call different ones: whichever starts next finds both."""
    write_snapshot(folder, [signed("items"), signed("stock", 1)])
    write_snapshot(folder, [signed("stock", 2), signed("prices")])
    assert held(folder) == {"endpoints/items.default": 1, "endpoints/stock.default": 2, "endpoints/prices.default": 1}
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600


def test_a_sibling_that_writes_is_not_waited_for(folder: Path) -> None:
    """The agent has certificates to renew; the snapshot is written with the next tick."""
    with locked(folder, 0.0, "snapshot.lock"), pytest.raises(TimeoutError):
        write_snapshot(folder, [signed("items")])
    assert held(folder) == {}


def test_renewal_of_the_certificate_and_the_snapshot_do_not_wait_for_each_other(folder: Path) -> None:
    """They are different files under different locks."""
    with locked(folder):
        write_snapshot(folder, [signed("items")])
    assert held(folder) == {"endpoints/items.default": 1}


def test_a_siblings_part_gives_way_at_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is too much the own part stays; more than that is refused, and the file is as before."""
    monkeypatch.setattr(snapshot_file, "SNAPSHOT_BYTES_MAX", 2000)
    write_snapshot(folder, [signed("items", size=1200)])
    write_snapshot(folder, [signed("stock", size=1200)])
    assert held(folder) == {"endpoints/stock.default": 1}
    with pytest.raises(ValueError, match="more than 2000"):
        write_snapshot(folder, [signed("prices", size=2000)])
    assert held(folder) == {"endpoints/stock.default": 1}


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"signers": 1}', b'{"signers": [], "fragments": [{}]}', b"[" * 100_000, b"\xff"]
)
def test_whatever_a_disk_holds_is_a_snapshot_or_none(folder: Path, text: bytes) -> None:
    """No start fails of it, and the next write mends it."""
    (folder / NAME).write_bytes(text)
    (folder / NAME).chmod(0o600)
    assert read_snapshot(folder) == []
    write_snapshot(folder, [signed("items")])
    assert held(folder) == {"endpoints/items.default": 1}


def test_one_that_others_may_write_is_refused(folder: Path) -> None:
    """With the command that mends it."""
    write_snapshot(folder, [signed("items")])
    (folder / NAME).chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        read_snapshot(folder)
