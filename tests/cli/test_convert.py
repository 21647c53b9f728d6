"""`meshlib convert`: a mesh.yaml on the one stream, the report on the other."""

from __future__ import annotations

import json
from importlib import import_module

from click.testing import CliRunner

from meshlib.cli import meshlib as main
from meshlib.config import parse_config
from meshlib.interop import conversion

TEXT = """
kind: Gateway
metadata: {name: web}
spec: {listeners: [{name: http, port: 80, protocol: HTTP}]}
---
kind: HTTPRoute
metadata: {name: items}
spec:
  parentRefs: [{name: web}]
  rules: [{backendRefs: [{name: items, port: 80}]}]
"""


def test_convert(tmp_path):
    """What it prints is a mesh.yaml, and what it says beside that is not in it."""
    path = tmp_path / "gateway.yaml"
    path.write_text(TEXT)
    result = CliRunner().invoke(main, ["convert", "--from", "gateway-api", str(path)])
    assert result.exit_code == 0
    assert "items.default" in parse_config(result.stdout).names()
    assert "approximated" in result.stderr
    assert CliRunner().invoke(main, ["convert", "--from", "gateway-api", str(path), "--strict"]).exit_code == 1
    printed = json.loads(CliRunner().invoke(main, ["convert", "--from", "gateway-api", str(path), "--json"]).stdout)
    assert {line["outcome"] for line in printed["report"]} == {"kept", "approximated"}


def test_it_takes_what_can_be_converted():
    """The choice is that of the library."""
    assert import_module("meshlib.cli.convert").SYSTEMS == conversion.SYSTEMS


def test_a_mistake_is_told(tmp_path):
    """By its field, and the exit code is that of a mistake in a configuration."""
    path = tmp_path / "gateway.yaml"
    path.write_text(TEXT.replace("port: 80}]}]", "port: 0}]}]"))
    result = CliRunner().invoke(main, ["convert", "--from", "gateway-api", str(path)])
    assert result.exit_code != 0
    assert "spec.rules[0].backendRefs[0].port" in result.stderr
