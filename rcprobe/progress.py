"""Progress with the time that is left, on a terminal; nothing at all anywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from rcprobe.loaded import LoadedModel

Progress = Callable[[int, int], None]


class Display:
    """Progress bars on standard error, gone when it is left; only where ``wanted`` and somebody watches."""

    def __init__(self, wanted: bool) -> None:
        self.bars: Bars | None = _bars() if wanted and sys.stderr.isatty() else None

    def __enter__(self) -> "Display":
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def bar(self, title: str) -> Progress | None:
        """A function of (done, of how many) that moves a bar, which shows from its first call; None unwatched."""
        if self.bars is None:
            return None
        bars = self.bars
        task = bars.add_task(title, total=None, visible=False)

        def move(done: int, of: int) -> None:
            if bars.tasks[task].completed > done:
                bars.reset(task)
            bars.update(task, completed=min(done, of), total=of, visible=done < of)

        return move


def _bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Bars(*columns, console=Console(stderr=True), transient=True)


class Passes:
    """Tells ``progress`` of each forward pass of a model inside; ``expected`` is a guess until it was left once."""

    def __init__(self, m: "LoadedModel", expected: int, progress: Progress | None) -> None:
        self.m, self.expected, self.progress, self.done = m, expected, progress, 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what happens inside; at the end the bar is full."""
        if self.progress is None:
            yield
            return
        self.done = 0
        handle = self.m.model.register_forward_hook(self._count)
        try:
            yield
        finally:
            handle.remove()
            self.progress(1, 1)
        self.expected = self.done

    def _count(self, *_: object) -> None:
        assert self.progress is not None
        self.done += 1
        self.progress(self.done, max(self.expected, self.done + 1))  # too low a guess never says "finished"
