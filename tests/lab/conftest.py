"""The coin method: an experiment of milliseconds, with knobs that make it fail."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from szilard import catalog
from szilard.lab.store import Unit
from szilard.lab.workers import Event

HERE = Path(__file__).parent


class Silent:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.events: list[Event] = []
        self.computed: Sequence[Unit] = ()
        self.reused = 0

    def begin(self, units: Sequence[Unit], reused: int) -> None:
        self.computed, self.reused = units, reused

    def event(self, event: Event) -> None:
        self.events.append(event)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def coin(monkeypatch: pytest.MonkeyPatch) -> catalog.Method:
    """The coin method, in the catalogue for the length of a test."""
    monkeypatch.syspath_prepend(str(HERE))
    from coin_cli import COIN

    monkeypatch.setattr(catalog, "METHODS", (*catalog.METHODS, COIN))
    method: catalog.Method = COIN
    return method


@pytest.fixture
def observer() -> Silent:
    return Silent()
