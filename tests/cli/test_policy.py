"""`check`, `schema`, `explain`, as a user types them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
from click.testing import CliRunner, Result

from meshlib.cli import meshlib
from meshlib.config.problems import MAX_PROBLEMS

GOOD = """\
version: 1
mesh: shop
services:
  orders: {}
  inventory:
    endpoints: [{static: ["127.0.0.1:18801", {address: "127.0.0.1:18802", labels: {version: "2"}}]}]
    subsets: {v2: {version: "2"}}
    routes:
      - name: beta
        matches: [{path: {prefix: /items}, headers: {x-beta: "1"}}]
        backends: [{subset: v2}]
        timeout: 500ms
      - name: main
        matches: [{path: {prefix: /items}}]
"""
FIVE_MISTAKES = """\
version: 2
mesh: Shop!
defaults:
  timeuot: 2s
services:
  inventory:
    endpoints: [{static: ["127.0.0.1"]}]
    routes:
      - name: main
        backends: [{subset: v9, weight: 1}]
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(meshlib, list(arguments), catch_exceptions=False)


def written(folder: Path, text: str) -> str:
    file = folder / "mesh.yaml"
    file.write_text(text)
    return str(file)


def test_routes_of_a_gateway_are_counted(tmp_path: Path) -> None:
    """As those of services are; and a subset of endpoints that have names is not said to be empty."""
    file = written(
        tmp_path,
        """\
version: 1
mesh: shop
services:
  items:
    allow_routes_from: [gateway/edge]
    endpoints: [{static: ["127.0.0.1:1"]}, {dns: {address: "items.test:1", labels: {track: canary}}}]
    subsets: {canary: {track: canary}}
gateways:
  edge:
    listeners: [{name: http, port: 80}]
    routes: [{name: items, backends: [{service: items}]}]
""",
    )
    result = run("check", file)
    assert "1 service, 1 endpoint, 1 route, version" in result.stdout
    assert result.stderr == ""


def test_a_good_file_is_ok_with_its_counts(tmp_path: Path) -> None:
    """One line on stdout, nothing on stderr, exit code 0."""
    file = written(tmp_path, GOOD)
    result = run("check", file)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{file}: ok: mesh shop, 2 services, 2 endpoints, 2 routes, version ")
    assert result.stderr == ""


def test_every_mistake_is_printed_with_its_place_and_then_their_number(tmp_path: Path) -> None:
    """Five mistakes, five lines as file:line:column: path: sentence, in the order of the file, and a count."""
    file = written(tmp_path, FIVE_MISTAKES)
    result = run("check", file)
    *lines, count = result.stderr.splitlines()
    assert result.exit_code == 1
    assert [line.removeprefix(f"{file}:").split(": ")[:2] for line in lines] == [
        ["1:10", "version"],
        ["2:7", "mesh"],
        ["4:3", "defaults.timeuot"],
        ["7:27", "services.inventory.endpoints[0].static[0]"],
        ["10:29", "services.inventory.routes[0].backends[0].subset"],
    ]
    assert "did you mean 'timeout'?" in lines[2]
    assert count == f"{file}: 5 problems"
    assert result.stdout == ""


def test_the_same_as_data(tmp_path: Path) -> None:
    """`--json` prints one document with ok and the problems, on stdout alone."""
    bad = run("check", written(tmp_path, FIVE_MISTAKES), "--json")
    assert bad.exit_code == 1
    assert bad.stderr == ""
    found = json.loads(bad.stdout)
    assert found["ok"] is False
    assert [(p["line"], p["column"]) for p in found["problems"]] == [(1, 10), (2, 7), (4, 3), (7, 27), (10, 29)]
    good = json.loads(run("check", written(tmp_path, GOOD), "--json").stdout)
    assert (good["ok"], good["services"], good["endpoints"], good["routes"]) == (True, 2, 2, 2)


def test_what_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    """An empty directory is no mesh: exit code 1 with a sentence, also as data; no such path at all is wrong usage."""
    assert run("check", str(tmp_path)).exit_code == 1
    assert json.loads(run("check", str(tmp_path), "--json").stdout)["problems"][0]["message"]
    assert run("check", str(tmp_path / "none.yaml")).exit_code == 2


def test_a_pipe_is_no_file_to_wait_for(tmp_path: Path) -> None:
    """`check` and `explain` say so at once, exit code 1: named itself, as a part, or as a file of endpoints."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    file = tmp_path / "mesh.conf"
    file.write_text("version: 1\nmesh: shop\nservices: {a: {endpoints: [{file: pipe.yaml}]}}\n")
    for given in (pipe, tmp_path, file):
        for command in (("check", str(given)), ("explain", str(given), "a")):
            result = run(*command)
            assert (result.exit_code, result.stdout) == (1, ""), command
            assert "not a regular file" in result.stderr
        (problem,) = json.loads(run("check", str(given), "--json").stdout)["problems"]
        assert "not a regular file" in problem["message"]


def test_a_directory_is_one_mesh(tmp_path: Path) -> None:
    """`check` counts all parts and `explain` sees them; a mistake names its part, and the count the directory."""
    (tmp_path / "mesh.yaml").write_text("version: 1\nmesh: shop\n")
    (tmp_path / "services.yaml").write_text(GOOD.removeprefix("version: 1\nmesh: shop\n"))
    good = run("check", str(tmp_path))
    assert (good.exit_code, good.stderr) == (0, "")
    assert good.stdout.startswith(f"{tmp_path}: ok: mesh shop, 2 services, 2 endpoints, 2 routes, version ")
    asked = run("explain", str(tmp_path), "inventory", "--path", "/items/7")
    assert (asked.exit_code, "route      main" in asked.stdout) == (0, True)
    (tmp_path / "zone.yaml").write_text("zome: x\n")
    bad = run("check", str(tmp_path))
    assert bad.exit_code == 1
    assert bad.stderr.splitlines()[0].startswith(f"{tmp_path}/zone.yaml:1:1: zome: unknown field")
    assert bad.stderr.splitlines()[1] == f"{tmp_path}: 1 problem"
    assert run("explain", str(tmp_path), "inventory").exit_code == 1


def test_the_count_of_very_many_problems_is_not_a_lie(tmp_path: Path) -> None:
    """Beyond the bound the rest is not listed, and the last line does not pretend to know them all."""
    fields = "".join(f"unknown{i}: 1\n" for i in range(MAX_PROBLEMS + 5))
    result = run("check", written(tmp_path, "version: 1\nmesh: shop\n" + fields))
    assert result.stderr.splitlines()[-1].endswith(f": more than {MAX_PROBLEMS} problems")


def test_the_schema_is_json_and_takes_a_good_file() -> None:
    """It can be given to an editor as it is, with and without --json."""
    schema = json.loads(run("schema").stdout)
    assert schema == json.loads(run("schema", "--json").stdout)
    jsonschema.validate({"version": 1, "mesh": "shop"}, schema)


def test_explain_says_where_a_call_goes(tmp_path: Path) -> None:
    """Method, path and headers decide the route, as they do in production."""
    file = written(tmp_path, GOOD)
    asked = json.loads(
        run("explain", file, "inventory", "--path", "/items/7?a=b", "--header", "X-Beta=1", "--source", "orders", "--json").stdout
    )  # fmt: skip
    assert asked["matched"]["route"] == "beta"
    assert [(b["subset"], b["weight"]) for b in asked["backends"]] == [("v2", 1)]
    assert asked["timeout_s"] == 0.5
    text = run("explain", file, "inventory", "--path", "/items/7")
    assert text.exit_code == 0
    assert "route      main" in text.stdout


def test_explain_says_no_with_exit_code_1(tmp_path: Path) -> None:
    """No route, no such service, a bad file: each says what it is."""
    file = written(tmp_path, GOOD)
    nowhere = run("explain", file, "inventory", "--path", "/other")
    assert (nowhere.exit_code, "404" in nowhere.stdout) == (1, True)
    unknown = run("explain", file, "inventroy")
    assert unknown.exit_code == 1
    assert "did you mean 'inventory'?" in unknown.stderr
    bad = run("explain", written(tmp_path, FIVE_MISTAKES), "inventory")
    assert (bad.exit_code, len(bad.stderr.splitlines())) == (1, 5)


def test_explain_refuses_what_is_no_call(tmp_path: Path) -> None:
    """Wrong usage is exit code 2 and names the option."""
    file = written(tmp_path, GOOD)
    for wrong, option in (("--header=x-beta", "--header"), ("--header==1", "--header"), ("--path=items", "--path")):
        result = run("explain", file, "inventory", wrong)
        assert (result.exit_code, option in result.stderr) == (2, True), wrong


SERVED = """\
version: 1
mesh: shop
control: {urls: ["https://127.0.0.1:7443"]}
services:
  inventory:
    endpoints: [{static: ["127.0.0.1:18801"]}, {registry: {}}]
    subsets: {v1: {version: "1"}, v2: {version: "2"}}
    routes: [{name: main, backends: [{subset: v1, weight: 9}, {subset: v2}], timeout: 500ms}]
"""


def test_a_file_with_a_config_service_is_checked_and_explained(tmp_path: Path) -> None:
    """What is registered is not known: no note says that a subset selects none, and an explanation needs no endpoints."""
    file = written(tmp_path, SERVED)
    checked = run("check", file)
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert "1 service, 1 endpoint, 1 route" in checked.stdout
    explained = run("explain", file, "inventory", "--json")
    assert explained.exit_code == 0
    assert json.loads(explained.stdout)["matched"]["route"] == "main"
    alone = run("check", written(tmp_path, SERVED.replace(", {registry: {}}", "")))
    assert alone.stderr.count("selects none of its endpoints") == 2
