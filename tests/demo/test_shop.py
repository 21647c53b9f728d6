"""The files of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshlib import ConfigError, explain, load_config
from meshlib.demo.shop import PORTS, SERVICES, TRUST_DOMAIN, Shop


def test_the_first_policy_is_good_and_knows_every_service(tmp_path: Path) -> None:
    """Before any process is started: who the config service is, and that nobody is listed by hand."""
    shop = Shop(tmp_path)
    config = load_config(shop.file)
    assert config.names() == tuple(sorted(f"{name}.default" for name in SERVICES))
    assert config.control is not None
    assert (config.control.urls, config.identity.source, config.trust_domain) == ((shop.url,), "control", TRUST_DOMAIN)
    assert [config.endpoints(name) for name in config.names()] == [()] * len(SERVICES)


def test_weights_are_a_new_policy(tmp_path: Path) -> None:
    """Of the same mesh, with the same config service."""
    shop = Shop(tmp_path)
    first = load_config(shop.file)
    shop.write_mesh("90", "10")
    assert load_config(shop.file).version_number != first.version_number
    assert [(b.subset, b.weight) for b in explain(shop.file, "inventory").backends] == [("v1", 90), ("v2", 10)]
    assert load_config(shop.file).control == first.control


def test_the_broken_edit_has_two_mistakes(tmp_path: Path) -> None:
    """Both are reported, so that the scene breaks what it says it breaks."""
    shop = Shop(tmp_path)
    shop.write_mesh("fifty", "-50")
    with pytest.raises(ConfigError) as refused:
        load_config(shop.file)
    assert len(refused.value.problems) == 2


def test_a_token_is_this_user_s_alone(tmp_path: Path) -> None:
    """Also one that is written over."""
    shop = Shop(tmp_path)
    shop.write_token("orders", "a")
    shop.write_token("orders", "b")
    assert shop.token_file("orders").read_text() == "b\n"
    assert shop.token_file("orders").stat().st_mode & 0o777 == 0o600


def test_a_port_is_given_out_once(tmp_path: Path) -> None:
    """A process that is not running keeps its own."""
    shop = Shop(tmp_path)
    ports = [shop.free_port() for _ in range(50)]
    assert len({*ports, int(shop.url.rpartition(":")[2])}) == 51
    assert set(ports) <= set(PORTS)
