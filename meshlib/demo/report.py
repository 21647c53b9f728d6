"""What the demo says: progress on stderr while it works, a table or one JSON object on stdout at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from .census import Census
from .shopper import Shopper
from .stage import Scene

WIDTH_OF_A_PIPE = 132
"""Columns where there is no terminal to ask."""
MARKS = {True: ("held", "green"), False: ("BROKEN", "bold red")}


class Progress:
    """What happens now, with the calls and failures so far: live on a terminal, else one line per scene."""

    def __init__(self) -> None:
        self.shopper: Shopper | None = None
        self._console = Console(stderr=True, highlight=False)
        self._now = "starting"
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._line,
            console=self._console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Live inside the block."""
        if self._console.is_terminal:
            self._live.start()
        try:
            yield
        finally:
            self._live.stop()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Out of the way inside the block."""
        self._live.stop()
        try:
            yield
        finally:
            if self._console.is_terminal:
                self._live.start()

    def say(self, what: str) -> None:
        """What happens now."""
        self._now = what

    def tell(self, line: str, style: str = "") -> None:
        """A line that stays."""
        self._console.print(line, style=style, soft_wrap=True, markup=False)

    def ended(self, scene: Scene) -> None:
        """A scene is over."""
        word, colour = MARKS[scene.held]
        self.tell(f"{word:>6}  {scene.name}: {scene.measured}", colour if not scene.held else "")

    @property
    def counts(self) -> str:
        """Calls and failures so far."""
        shopper = self.shopper
        return "" if shopper is None else f"{shopper.ended:,} calls, {shopper.failures} failed"

    @property
    def live(self) -> bool:
        """Is there a terminal to be live on?"""
        return self._console.is_terminal

    def _line(self) -> Spinner:
        self._spinner.update(
            text=Text.assemble(self._now, "  ", (self.counts, "bold"), overflow="ellipsis", no_wrap=True)
        )
        return self._spinner


def results(shopper: Shopper, census: Census, scenes: list[Scene]) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    return {
        "calls": shopper.calls,
        "failures": shopper.failures,
        "injected": shopper.injected,
        "retries": census.retries(),
        "p50_ms": shopper.quantile_ms(0.5),
        "p99_ms": shopper.quantile_ms(0.99),
        "scenes": [{"name": scene.name, "held": scene.held, "figures": scene.figures} for scene in scenes],
        "edges": [
            {"source": source, "destination": destination, "calls": calls}
            for (source, destination), calls in sorted(census.edges().items(), key=lambda edge: -edge[1])
        ],
    }


def print_json(data: dict[str, Any]) -> None:
    """One object on stdout."""
    print(json.dumps(data, ensure_ascii=False), flush=True)


def print_tables(data: dict[str, Any], scenes: list[Scene], trails: list[str]) -> None:
    """The same for people, on stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_PIPE)
    promises = Table(title="What was promised, and what was measured", title_justify="left", show_lines=True)
    for column in ("scene", "promised", "measured", "held"):
        promises.add_column(column)
    for scene in scenes:
        promises.add_row(scene.name, scene.promised, scene.measured, Text(*MARKS[scene.held]))
    console.print(Group(promises, "", _calls(data), "", _edges(data)))
    console.print(
        "Calls and failures are counted by the shopper, who called whom by the servers, without what a killed replica\n"
        "served after it was last asked. The visitor is the demo itself, asking the process that started on its own.",
        style="dim",
    )
    for trail in trails:
        console.print(Text(f"\nFAILED {trail}", "red"))


def _calls(data: dict[str, Any]) -> Table:
    return _row("Calls of the shopper", {
        "requests": f"{data['calls']:,}",
        "failures": str(data["failures"]),
        "injected": str(data["injected"]),
        "retries, anywhere": str(data["retries"]),
        "p50": f"{data['p50_ms']:.1f} ms",
        "p99": f"{data['p99_ms']:.1f} ms",
    })  # fmt: skip


def _edges(data: dict[str, Any]) -> Table:
    table = Table(title="Who called whom", title_justify="left")
    table.add_column("source → destination")
    table.add_column("requests served", justify="right")
    for edge in data["edges"]:
        table.add_row(f"{edge['source']} → {edge['destination']}", f"{edge['calls']:,}")
    return table


def _row(title: str, cells: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in cells:
        table.add_column(column, justify="right")
    table.add_row(*cells.values())
    return table
