"""Our own tidy: what a reviewer would say twice, said by a test. The direction of imports is import-linter's."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = ROOT / "meshlib", ROOT / "tests"

NAMES_FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager"}
KERNELS = (
    "policy/", "transport/http1.py", "transport/pool.py", "telemetry/traceparent.py", "discovery/fragment.py",
    "discovery/poll_schedule.py", "discovery/registered.py", "discovery/registration.py", "discovery/subscription.py",
    "control/registry.py", "control/catalog.py", "control/clock.py",
)  # fmt: skip
"""The list of docs/design.md."""
NOT_IN_KERNELS = {"asyncio", "threading", "time", "random", "socket", "ssl", "httpx", "grpc"}
FILE_LINES_MAX, FUNCTION_LINES_MAX = 500, 70
LONG_FILES: dict[str, str] = {
    "tests/transport/test_http_leaf.py": "one body of tests run on both runtimes, over one scripted server",
    "tests/transport/test_httpx_parity.py": "one table of httpx's behaviour, row by row",
    "tests/transport/test_uvicorn.py": "one connection's rules, over one running server",
}
"""File, relative to the root: why it may be longer."""
LONG_FUNCTIONS: dict[str, str] = {}
"""file:function: why it may be longer."""
LAZY = ("grpc", "uvicorn", "starlette", "a2wsgi", "click", "rich", "opentelemetry.sdk")
"""What `import meshlib` must not load."""
SLEEPS_ALLOWED = ("tests/transport/", "tests/process/", "tests/faults/", "tests/conformance/httproute.py")
"""Real sockets and processes; elsewhere only tests marked `process` or `faults` may sleep."""


def words(*parts: str) -> str:
    """Spelt in pieces, so that this file does not contain what it forbids."""
    return "".join(parts)


WORDS_FORBIDDEN = [
    words("proto", "type"), words("AI", "-generated"), words("LL", "M"), words("Clau", "de"), words("Chat", "GPT"),
    words("Open", "AI"), words("Cod", "ex"), words("Anthro", "pic"), words("Copi", "lot"),
]  # fmt: skip
PATHS_FORBIDDEN = [words("/wo", "rk/"), words("/ro", "ot/"), words("/tm", "p/")]
PATHS_ALLOWED: dict[str, str] = {}
"""File, relative to the root: why it names an absolute path."""
TEXT_SUFFIXES = {"", ".cfg", ".css", ".html", ".in", ".ini", ".js", ".json", ".md", ".py", ".pyi", ".sh", ".svg",
                 ".toml", ".txt", ".yaml", ".yml"}  # fmt: skip


@cache
def tracked() -> tuple[Path, ...]:
    """Every text file that is, or may become, part of the repository: tracked, or neither tracked nor ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    if listed.returncode:  # an unpacked sdist
        found = [path for folder in (PACKAGE, TESTS, ROOT / "docs", ROOT / "examples") for path in folder.rglob("*")]
        return tuple(path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return tuple(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())


def texts() -> Iterator[tuple[str, str]]:
    """(name relative to the root, text) of every tracked text file."""
    for path in tracked():
        if path.suffix in TEXT_SUFFIXES:
            yield name_of(path), path.read_text(encoding="utf-8", errors="replace")


def sources(folder: Path) -> list[Path]:
    """The Python files below `folder`."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Relative to the root, with slashes."""
    return path.relative_to(ROOT).as_posix()


def is_kernel(path: Path) -> bool:
    """Is it on the list of docs/design.md?"""
    return path.relative_to(PACKAGE).as_posix().startswith(KERNELS)


def imported(path: Path) -> set[str]:
    """The top-level names of everything imported at run time (not under `if TYPE_CHECKING`), absolute ones only."""
    found: set[str] = set()
    for node in runtime_nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")):
            yield child
            yield from runtime_nodes(child)


def public(path: Path) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public classes and functions of a module whose own name is public."""
    if path.stem.startswith("_") and path.stem not in ("__init__", "__main__"):
        return
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def test_no_file_is_named_for_nothing():
    """A file is named by its term; these names are where terms go to hide."""
    assert [
        name_of(p) for p in tracked() if p.stem.strip("_") in NAMES_FORBIDDEN or p.parent.name in NAMES_FORBIDDEN
    ] == []


def test_every_module_says_what_it_decides():
    """A docstring at the top of each file, tests too; an empty `__init__.py` has nothing to say."""
    files = [*sources(PACKAGE), *sources(TESTS)]
    assert [name_of(p) for p in files if tree(p).body and not ast.get_docstring(tree(p))] == []


def test_every_public_name_has_a_contract():
    """Every public class and function of the package has a docstring."""
    missing = [
        f"{name_of(p)}:{node.name}" for p in sources(PACKAGE) for node in public(p) if not ast.get_docstring(node)
    ]
    assert missing == []


def test_every_test_says_what_must_be_true():
    """A docstring per test."""
    missing = [
        f"{name_of(path)}:{node.name}"
        for path in sources(TESTS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert missing == []


def test_kernels_are_pure():
    """No time, no chance, no I/O: they are arguments."""
    kernels = [path for path in sources(PACKAGE) if is_kernel(path)]
    assert len(kernels) >= 12
    assert {name_of(p): bad for p in kernels if (bad := imported(p) & NOT_IN_KERNELS)} == {}


def test_what_is_to_be_done_has_a_number():
    """A promise to do something later names its issue."""
    pattern = re.compile(r"#\s*(TODO|FIXME|XXX|HACK)\b(?!.*#\d+)")
    found = {name: hit.group() for name, text in texts() if name.endswith(".py") and (hit := pattern.search(text))}
    assert found == {}


def is_marked(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> bool:
    """Is it marked `process` or `faults`, by a decorator or the module's `pytestmark`?"""
    marks = [s.value for s in node.body if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "pytestmark"]
    marks += getattr(node, "decorator_list", [])
    return any(re.search(r"pytest\.mark\.(process|faults)\b", ast.unparse(mark)) for mark in marks)


def sleeps(node: ast.AST) -> Iterator[int]:
    """Lines that call `time.sleep` or `asyncio.sleep` with more than nothing, outside what is marked."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and is_marked(child):
            continue
        if isinstance(child, ast.Call) and re.match(r"(time|asyncio)\.sleep\((?!0\))", ast.unparse(child)):
            yield child.lineno
        yield from sleeps(child)


def test_unit_tests_do_not_sleep():
    """`asyncio.sleep(0)` only yields; any other wait belongs to virtual time, or to a test marked process or faults."""
    unit = [p for p in sources(TESTS) if not name_of(p).startswith(SLEEPS_ALLOWED) and not is_marked(tree(p))]
    assert {name_of(path): lines for path in unit if (lines := list(sleeps(tree(path))))} == {}


def test_files_and_functions_are_short():
    """≤ 500 lines a file, ≤ 70 a function, unless listed above with a reason; nothing short is listed."""
    long_files, long_functions = {}, {}
    for path in [*sources(PACKAGE), *sources(TESTS)]:
        name, lines = name_of(path), len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES_MAX:
            long_files[name] = lines
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > FUNCTION_LINES_MAX:
                    long_functions[f"{name}:{node.name}"] = size
    assert (long_files.keys(), long_functions.keys()) == (LONG_FILES.keys(), LONG_FUNCTIONS.keys()), (
        long_files,
        long_functions,
    )
    assert all(reason.strip() for reason in (*LONG_FILES.values(), *LONG_FUNCTIONS.values()))


def test_nothing_names_this_machine():
    """No absolute path of whoever wrote it, unless listed above with a reason."""
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(path)}" for path in PATHS_FORBIDDEN))
    found = {name: hit.group() for name, text in texts() if name not in PATHS_ALLOWED and (hit := pattern.search(text))}
    assert found == {}


@pytest.mark.parametrize("word", WORDS_FORBIDDEN)
def test_words_that_do_not_belong_here(word):
    """The project speaks of itself, not of how it came to be."""
    pattern = re.compile(
        rf"\b{re.escape(word)}\b", re.IGNORECASE if word.lower() != word.upper() and len(word) > 4 else 0
    )
    assert [name for name, text in texts() if pattern.search(text)] == []


def test_importing_meshlib_is_light():
    """`import meshlib` and asking for its errors loads no server, no gRPC, no command line, no SDK."""
    script = (
        "import sys, meshlib; meshlib.MeshError, meshlib.current\n"
        f"print([name for name in {LAZY!r} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.strip() == "[]"
