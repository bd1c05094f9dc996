"""One thing opened for each seed of a run, whoever runs it."""

from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

from rcprobe.measured import Step

Opened = TypeVar("Opened")


class Sessions(Generic[Opened]):
    """What ``open(run, seed)`` opened. A run is named by the time of its first step; when a seed's steps go back,
    another run has begun.
    """

    def __init__(self, open: Callable[[str, int], Opened]) -> None:
        self.open = open
        self.end()

    def end(self) -> None:
        """Forget the run: the next step begins another."""
        self.run = ""
        self.opened: dict[int, Opened] = {}
        self.reached: dict[int, int] = {}

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
