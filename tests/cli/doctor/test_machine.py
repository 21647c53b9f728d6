"""What is found on a machine: distributions, libraries, limits, variables."""

from __future__ import annotations

import re
import resource
import sys
from importlib import metadata
from pathlib import Path

import pytest

import meshlib
from meshlib.cli.doctor import machine

PACKAGE = Path(meshlib.__file__).parent


def found(subject: str, environ: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """(level, sentence) of every finding about something."""
    return [(one.level, one.said) for one in machine.machine(environ or {}) if one.subject == subject]


def test_a_machine_as_it_should_be_has_no_problem() -> None:
    """This one: all that is said is one line each, and nothing is a problem."""
    findings = list(machine.machine({}))
    assert [one for one in findings if one.level == "problem"] == []
    assert [one.subject for one in findings] == ["python", "distribution", "extras", "uvloop", "open files"]
    assert all("\n" not in one.said for one in findings)


def test_the_other_distribution_of_this_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install meshlib` brings a library of 3-D geometry into the same folder: how to get out is said."""
    info = tmp_path / "meshlib-3.0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: meshlib\nVersion: 3.0.1.0\n")
    (info / "RECORD").write_text("meshlib/__init__.py,,\nmeshlib/mrmeshpy.so,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    ((level, said),) = found("distribution")
    assert level == "problem"
    assert "meshlib 3.0.1.0 is installed too" in said
    assert "pip uninstall meshlib" in said


def test_a_fork_under_another_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else says that it provides the import name."""
    info = tmp_path / "mymesh-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mymesh\nVersion: 1\n")
    (info / "top_level.txt").write_text("meshlib\n")
    monkeypatch.syspath_prepend(tmp_path)
    ((level, said),) = found("distribution")
    assert (level, "mymesh 1 is installed too" in said) == ("problem", True)


def test_what_an_extra_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through an extra that it names; one that this release does not use is not."""
    lines = [
        "httpx<0.29,>=0.28",
        'uvicorn<0.55,>=0.54; extra == "server"',
        'click>=8.1; extra == "cli"',
        "service-meshlib[cli,server]; extra == 'control'",
        "service-meshlib[control]; extra == 'demo'",
        'redis>=5; extra == "redis"',
    ]
    monkeypatch.setattr(machine, "_requirements", lambda: lines)
    monkeypatch.setattr(machine, "_version", lambda name: "" if name in ("uvicorn", "redis") else "1")
    ((level, said),) = found("extras")
    assert level == "warning"
    assert said == (
        "server (serving) lacks uvicorn; control (the config service) lacks uvicorn; demo (meshlib demo) lacks uvicorn. "
        "If wanted here: pip install 'service-meshlib[server,control,demo]'"
    )


def test_the_extras_are_those_of_the_distribution() -> None:
    """Each that is looked for is there; the real requirements are understood."""
    declared = metadata.metadata("service-meshlib").get_all("Provides-Extra")
    assert set(machine.EXTRAS) <= set(declared or ())
    assert any(machine._REQUIREMENT.match(line) for line in machine._requirements())


def test_extras_that_name_each_other_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circle is no endless loop."""
    lines = ["service-meshlib[cli]; extra == 'server'", "service-meshlib[server]; extra == 'cli'"]
    monkeypatch.setattr(machine, "_requirements", lambda: lines)
    assert found("extras")[0][0] == "ok"


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """And which one is needed."""
    monkeypatch.setattr(machine, "PYTHON_MIN", (sys.version_info.major, sys.version_info.minor + 1))
    ((level, said),) = found("python")
    assert (level, "is too old: install Python" in said) == ("problem", True)


def test_few_open_files_and_no_uvloop_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do; no limit at all is none."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(machine, "find_spec", lambda _: None)
    assert found("open files") == [
        ("warning", "at most 1024; each connection is one: ulimit -n 65536 (at most 4096), or LimitNOFILE= of systemd")
    ]
    assert found("uvloop")[0][0] == "warning"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert found("open files") == [("ok", "no limit")]


def test_a_variable_that_nothing_reads_is_found() -> None:
    """With what may have been meant; those that are read are named, but not their values."""
    environ = {"MESHLIB_SERVICE": "orders", "MESHLIB_ZON": "a", "MESHLIB_WHATEVER_ELSE": "b", "OTHER": "c"}
    assert found("environment", environ) == [
        ("ok", "MESHLIB_SERVICE"),
        ("warning", "MESHLIB_WHATEVER_ELSE is set, and nothing reads it: unset it"),
        ("warning", "MESHLIB_ZON is set, and nothing reads it: did you mean MESHLIB_ZONE?"),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESHLIB_LABELS", "v2"),
        ("MESHLIB_CONTROL_URLS", "http://a:1"),
        ("MESHLIB_LOG", "LOUD"),
        ("MESHLIB_ZONE", "a" * 999),
    ],
)
def test_a_variable_that_cannot_be_understood_is_a_problem(name: str, value: str) -> None:
    """As in a process, which would not start."""
    ((level, said),) = found("environment", {name: value})
    assert (level, said.startswith(name)) == ("problem", True)


def test_every_variable_that_is_read_is_known() -> None:
    """And no other: the names in the code of the package are the list."""
    read = set[str]()
    for file in PACKAGE.rglob("*.py"):
        if file != Path(machine.__file__):
            read |= set(re.findall(r'["\'](MESHLIB_[A-Z_]+)["\']', file.read_text()))
    assert read == set(machine.VARIABLES)
