"""One thing opened for each seed of a run, whoever runs it."""

from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

from rcprobe.measured import Step

Opened = TypeVar("Opened")


class Sessions(Generic[Opened]):
    """What ``open(run, seed)`` opened, and ``close`` closes. A run is named by the time of its first step.

    A step says its seed and its number, not whose it is. When a seed's steps go back, another run has begun, and what
    the one before had opened is closed. Two runs of the same seed that take turns look like one run after another
    where their steps go back, and like one run where they don't: they can't be told apart.
    """

    def __init__(self, open: Callable[[str, int], Opened], close: Callable[[Opened], object]) -> None:
        self.open, self.close = open, close
        self.opened: dict[int, Opened] = {}
        self.end()

    def end(self) -> None:
        """Close what is open and forget the run: the next step begins another."""
        opened, self.opened = self.opened, {}
        self.run = ""
        self.reached: dict[int, int] = {}
        for one in opened.values():
            self.close(one)

    def at(self, step: Step) -> Opened:
        """What is open for a step's seed."""
        if step.step <= self.reached.get(step.seed, -1):
            self.end()
        self.reached[step.seed] = step.step
        return self.of(step.seed)

    def of(self, seed: int) -> Opened:
        """What is open for a seed."""
        self.run = self.run or f"{datetime.now():%Y-%m-%d %H.%M.%S.%f}"
        if seed not in self.opened:
            self.opened[seed] = self.open(self.run, seed)
        return self.opened[seed]
