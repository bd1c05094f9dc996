"""The part of a run's folder that belongs to one seed: finished steps, where training stands, the trained weights."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rcprobe.errors import RunError
from rcprobe.files import inside, make_folder, read_json, write_json
from rcprobe.measured import Step
from rcprobe.step_files import DONE, check_done, load_step, mark_done, save_step, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

BATCH = "batch.json"
STATE = "state.safetensors"
MODEL = "model"


@dataclass(frozen=True)
class SeedResult:
    """A finished seed: its steps in order, why it failed if it did, the weights last probed, prompts at once."""

    steps: tuple[Step, ...]
    failure: str | None
    fingerprint: str
    batch_size: int


@dataclass(frozen=True)
class SeedFolder:
    """The part of a run's folder that belongs to one seed; without ``writes`` what is to be kept is left to another."""

    path: Path
    writes: bool = True

    @property
    def model(self) -> Path:
        """Where the trained weights are."""
        return inside(self.path, MODEL)

    def numbers(self) -> list[int]:
        """The steps whose marker is there, in order."""
        return [number for number, _ in _numbered(self.path, "step")]

    def step(self, number: int) -> Step:
        """A finished step. Raises ``RunError`` naming a file that is damaged or missing."""
        return load_step(inside(self.path, f"step-{number:07d}"))

    def save_step(self, step: Step) -> None:
        """Keep a step; it counts once this returns. Raises ``RunError``."""
        if self.writes:
            save_step(inside(self.path, f"step-{step.step:07d}"), step)

    def save_state(self, step: int, tensors: Mapping[str, "Tensor"]) -> None:
        """Keep where training stands, in place of where it stood. Raises ``RunError``."""
        if not self.writes:
            return
        from safetensors.torch import save_file

        folder = inside(self.path, f"state-{step:07d}")
        make_folder(folder)
        write_safetensors(folder / STATE, lambda path: save_file(dict(tensors), path))
        mark_done(folder, [STATE])
        self._drop_states(folder)

    def load_state(self) -> "tuple[int, dict[str, Tensor]] | None":
        """(step, state) where training stood last; None where nothing was kept. Raises ``RunError``."""
        kept = _numbered(self.path, "state")
        if not kept:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = kept[-1][1] / STATE
        try:
            check_done(path.parent)
            return kept[-1][0], load_file(path)
        except (RunError, OSError, SafetensorError) as error:
            raise RunError(
                f"{error}; delete {path.parent} to train this seed again, its finished steps stay"
            ) from error

    def batch_size(self, settle: Callable[[], int]) -> int:
        """How many prompts go through at once: settled when the seed begins, since memory differs when it goes on."""
        path = self.path / BATCH
        if not path.exists() and not self.writes:
            return settle()
        if not path.exists():
            make_folder(self.path)
            write_json(path, {"batch_size": settle()})
        size = read_json(path).get("batch_size")
        if not isinstance(size, int):
            raise RunError(f"{path}: isn't what rcprobe writes (no batch_size)")
        return size

    def finish(self, failure: str | None, fingerprint: str, steps: list[int], batch_size: int) -> None:
        """Mark the seed finished, or failed for good, with the steps that belong to it. Raises ``RunError``."""
        if not self.writes:
            return
        model = [str(p.relative_to(self.path)) for p in sorted(self.model.glob("*")) if p.is_file()]
        make_folder(self.path)
        mark_done(self.path, model, failure=failure, fingerprint=fingerprint, steps=steps, batch_size=batch_size)
        self._drop_states()

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.path / DONE).exists()

    def failure(self) -> str | None:
        """Why the seed failed; None if it didn't, or isn't finished. Raises ``RunError``."""
        reason = read_json(self.path / DONE).get("failure") if self.finished() else None
        return None if reason is None else str(reason)

    def result(self) -> SeedResult:
        """What a finished seed gave. Raises ``RunError`` naming a file that is damaged or missing."""
        marker = check_done(self.path)
        try:
            failure, fingerprint, size = marker["failure"], marker["fingerprint"], marker["batch_size"]
            numbers = marker["steps"]
        except KeyError as error:
            raise RunError(f"{self.path / DONE}: {error} is missing") from error
        return SeedResult(tuple(self.step(number) for number in numbers), failure, fingerprint, size)

    def _drop_states(self, but: Path | None = None) -> None:
        for folder in self.path.glob("state-*"):
            if folder != but:
                (folder / DONE).unlink(missing_ok=True)  # first: half a state must not count
                shutil.rmtree(folder, ignore_errors=True)


def _numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """Folders such as step-0000300 that have their marker, by number."""
    found = ((path.parent.name.removeprefix(f"{kind}-"), path.parent) for path in folder.glob(f"{kind}-*/{DONE}"))
    return sorted((int(number), path) for number, path in found if number.isdigit())
