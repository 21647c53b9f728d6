"""The files of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlib import ConfigError, explain, load_config
from meshlib.demo.shop import SERVICES, Shop


def test_the_first_policy_is_good_and_knows_every_service(tmp_path: Path) -> None:
    """Before any replica is started."""
    shop = Shop(tmp_path)
    assert load_config(shop.file).names() == tuple(sorted(f"{name}.default" for name in SERVICES))
    assert shop.version == load_config(shop.file).version_number


def test_weights_and_endpoints_are_a_new_policy(tmp_path: Path) -> None:
    """Each write changes the version; the same content gives the same version again."""
    shop = Shop(tmp_path)
    first = shop.version
    shop.write_mesh("90", "10")
    edited = shop.version
    shop.write_endpoints("inventory", [("127.0.0.1:1", "v1"), ("127.0.0.1:2", "v2")])
    assert len({first, edited, shop.version}) == 3
    assert [e.labels["version"] for e in load_config(shop.file).endpoints("inventory.default")] == ["v1", "v2"]
    assert [(b.subset, b.weight) for b in explain(shop.file, "inventory").backends] == [("v1", 90), ("v2", 10)]
    shop.write_endpoints("inventory", [])
    assert shop.version == edited


def test_the_broken_edit_has_two_mistakes(tmp_path: Path) -> None:
    """Both are reported, so that the scene breaks what it says it breaks."""
    shop = Shop(tmp_path)
    shop.write_mesh("fifty", "-50")
    with pytest.raises(ConfigError) as refused:
        load_config(shop.file)
    assert len(refused.value.problems) == 2
