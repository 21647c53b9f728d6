"""The command line as a whole: its commands, its help, what it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

import meshlib as package
from meshlib.cli import meshlib

COMMANDS = [
    ["check"], ["schema"], ["explain"], ["convert"], ["control"], ["status"], ["services"], ["token"], ["token", "create"],
    ["token", "list"], ["token", "revoke"], ["ca"], ["ca", "show"], ["ca", "rotate"], ["ca", "revoke"], ["identity"], ["gateway"],
    ["doctor"], ["demo"], ["version"], [],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    """`--help` and `-h` show a line that can be typed as it stands."""
    for option in ("--help", "-h"):
        result = CliRunner().invoke(meshlib, [*command, option])
        assert result.exit_code == 0
        assert " ".join(["Example:\n    meshlib", *command]).rstrip() in result.output


def test_there_are_no_other_commands() -> None:
    """What is not tested here is not there."""

    def paths(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[list[str]]:
        for name, command in group.commands.items():
            yield [*above, name]
            if isinstance(command, click.Group):
                yield from paths(command, (*above, name))

    assert sorted(paths(meshlib)) == sorted(command for command in COMMANDS if command)


def test_the_version_is_the_package_s() -> None:
    """As text and as data."""
    assert CliRunner().invoke(meshlib, ["version"]).stdout.startswith(f"meshlib {package.__version__}, Python 3.")
    assert json.loads(CliRunner().invoke(meshlib, ["version", "--json"]).stdout)["meshlib"] == package.__version__


def test_wrong_usage_is_exit_code_2() -> None:
    """An unknown command, an unknown option."""
    assert CliRunner().invoke(meshlib, ["chekc"]).exit_code == 2
    assert CliRunner().invoke(meshlib, ["version", "--loud"]).exit_code == 2


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    """The command line starts without the libraries of the commands that are not run."""
    heavy = {"asyncio", "cryptography", "fastapi", "flask", "httpx", "pydantic", "rich", "tenacity", "uvicorn", "yaml"}
    code = f"import sys, meshlib.cli; print(sorted({heavy!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


@pytest.mark.parametrize(
    ("gone", "arguments", "wanted"),
    [("click", ["version"], "service-meshlib[cli]"), ("fastapi", ["demo"], "service-meshlib[demo]")],
)
def test_a_library_that_is_missing_is_one_sentence(gone: str, arguments: list[str], wanted: str) -> None:
    """What to install, and exit code 2; no traceback."""
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {gone!r} else find(name, *a)\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "from meshlib.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert wanted in result.stderr
