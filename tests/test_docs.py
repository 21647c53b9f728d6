"""The pages in docs/ and the README say what is so: generated parts are fresh, examples run and print what is shown.

What a page marks is tested: `<!-- runs -->` before a python block, and `<!-- prints -->` before what it prints. The
blocks of a page are one program, in order. Times, loads and waits differ from run to run and are compared as such.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest

from meshlib.cli import meshlib as command_line
from meshlib.config import load_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN_S = 60

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("MESHLIB_", "OTEL_"))},
    "PYTHONPATH": str(ROOT),
    "PYTHONIOENCODING": "utf-8",
    "NO_MKDOCS_2_WARNING": "1",
}
FENCE = re.compile(
    r"^(?P<mark><!-- (?:runs|prints) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
VARIES = (
    (re.compile(r"\d+\.\d+ ms"), "N ms"),
    (re.compile(r"load \S+ against \S+"), "load N against N"),
    (re.compile(r"in \d+\.\d+ s\b"), "in N s"),
)


def named(path: Path) -> str:
    """Relative to the root."""
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, kind: str, mark: str = "") -> list[str]:
    """The fenced blocks of a kind, with that mark."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [m["text"] for m in found if m["kind"] == kind and mark in (m["mark"] or "")]


def files(page: Path) -> dict[str, str]:
    """The blocks that begin with a comment that is a file's name, as files."""
    found: dict[str, str] = {}
    for kind in ("python", "yaml"):
        for text in blocks(page, kind):
            if name := re.match(r"# (\w+\.(?:py|yaml))\n", text):
                found[name[1]] = text
    return found


def settled(text: str) -> str:
    """Text without what differs from run to run."""
    for pattern, put in VARIES:
        text = pattern.sub(put, text)
    return text.rstrip()


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=ENVIRONMENT, check=False, capture_output=True, text=True,
        encoding="utf-8", timeout=RUN_S,
    )  # fmt: skip


def test_generated_parts_are_fresh():
    """What the pages say of the code is what the code says; `python docs/generate.py` writes it anew."""
    ran = python("docs/generate.py", "--check", cwd=ROOT)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_stale_part_is_found(tmp_path):
    """The check fails, and names the page, when one part differs by a word; writing mends it and nothing else."""
    for file in [*DOCS.glob("*.py"), *DOCS.glob("*.md")]:
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "adr").symlink_to(DOCS / "adr")
    page = tmp_path / "operating.md"
    before = page.read_text(encoding="utf-8")
    page.write_text(
        before.replace("`meshlib_calls_total` | counter", "`meshlib_calls_total` | gauge"), encoding="utf-8"
    )
    ran = python("generate.py", "--check", cwd=tmp_path)
    assert (ran.returncode, ran.stderr.startswith("docs/operating.md: stale")) == (1, True)
    assert python("generate.py", cwd=tmp_path).returncode == 0
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python", "runs")], ids=named)
def test_examples_run(page, tmp_path):
    """Every python block that is marked runs, and prints what the page shows below it."""
    program = "\n".join(f"{text}\nprint('\\f')" for text in blocks(page, "python", "runs"))
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    ran = python("page.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    printed = [settled(text.strip("\n")) for text in ran.stdout.split("\f")[:-1] if text.strip()]
    assert printed == [settled(text) for text in blocks(page, "text", "prints")]


def policies() -> Iterator[tuple[Path, int]]:
    """(page, index) of every yaml block that is a whole policy."""
    for page in PAGES:
        for index, text in enumerate(blocks(page, "yaml")):
            if "version:" in text and "mesh:" in text:
                yield page, index


@pytest.mark.parametrize(("page", "index"), list(policies()), ids=lambda v: named(v) if isinstance(v, Path) else str(v))
def test_policies_are_valid(page, index, tmp_path):
    """Every whole policy that is shown can be used."""
    for name, text in files(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    file = tmp_path / "mesh.yaml"
    file.write_text(blocks(page, "yaml")[index], encoding="utf-8")
    assert load_config(file).mesh == "shop"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_resolve(page):
    """A link to a file of the project leads to a file, and its anchor to a heading."""
    toc = pytest.importorskip("markdown.extensions.toc")
    missing = []
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in headings(file, toc)):
            missing.append(target)
    assert missing == []


def headings(file: Path, toc: object) -> set[str]:
    """The anchors of a page."""
    text = FENCE.sub("", file.read_text(encoding="utf-8"))
    return {toc.slugify(title, "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}  # type: ignore[attr-defined]


def shown_commands(page: Path) -> Iterator[list[str]]:
    """Every `meshlib …` of a page: at the beginning of a line of code, or a whole code span."""
    text = page.read_text(encoding="utf-8")
    lines = [line for match in FENCE.finditer(text) for line in match["text"].splitlines() if match["kind"] != "text"]
    lines += re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for line in lines:
        if re.match(r"(\$ )?meshlib [a-z]", line):
            yield shlex.split(line.removeprefix("$ "), comments=True)[1:]


def unknown_words(words: list[str]) -> list[str]:
    """What of a command does not exist: a command, or an option."""
    command: click.Command = command_line
    while words and isinstance(command, click.Group):
        word, *words = words
        if word not in command.commands:
            return [word]
        command = command.commands[word]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]


def test_commands_that_are_shown_exist():
    """Every `meshlib …` on a page is a command, with options that it has."""
    shown = [(named(page), words) for page in PAGES for words in shown_commands(page)]
    assert len(shown) > 10
    assert [(page, words) for page, words in shown if unknown_words(words)] == []
    assert unknown_words(["check", "--no-such"]) == ["--no-such"]
    assert unknown_words(["no-such"]) == ["no-such"]


def test_the_site_builds(tmp_path):
    """`mkdocs build --strict`: every page is in the navigation, every link and anchor leads somewhere."""
    pytest.importorskip("material")
    ran = python("-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path), cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r'(?:src|href)="https?://fonts[^"]*"', (tmp_path / "index.html").read_text("utf-8")) == []


@pytest.mark.process
@pytest.mark.parametrize("page", [DOCS / "quickstart.md"], ids=named)
def test_the_quick_start_works(page, tmp_path):
    """Typed as it stands, but for the ports, it prints what it says, and a service that is stopped gives that trail."""
    written = files(page)
    with ExitStack() as held:
        ports = {}
        for name in ("8001", "8002"):
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[name] = str(listener.getsockname()[1])
    for name, text in written.items():
        (tmp_path / name).write_text(re.sub("8001|8002", lambda m: ports[m[0]], text), encoding="utf-8")
    shown = [
        re.sub("8001|8002", lambda m: ports[m[0]], text)
        for text in blocks(page, "text")
        if text.startswith(("{", "call"))
    ]
    with ExitStack() as held:
        servers = [held.enter_context(serving(name, tmp_path)) for name in ("inventory.py", "orders.py")]
        asked = python("shopper.py", cwd=tmp_path)
        assert asked.stdout == shown[0], asked.stderr
        servers[0].send_signal(signal.SIGINT)
        assert servers[0].wait(RUN_S) == 0
        assert settled(python("broken.py", cwd=tmp_path).stdout) == settled(shown[1])


class serving:
    """A program that serves, from the line that says so to its end."""

    def __init__(self, script: str, folder: Path) -> None:
        self.script, self.folder = script, folder

    def __enter__(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, self.script], cwd=self.folder, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "listening on" in line:
                return self.process
        self.process.wait(RUN_S)
        self.process.stderr.close()
        raise AssertionError("".join(said))

    def __exit__(self, *_exc: object) -> None:
        self.process.terminate()
        self.process.wait(RUN_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
