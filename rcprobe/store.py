"""A run as a folder: what it is in ``manifest.json``, and a folder a seed with a folder for each finished step.

manifest.json            what was asked, of which weights, with which versions; written once
dataset.json             the facts
learning_rates.json      what choosing one of a grid found
seed-0/step-0000300/     a probed step (``step_files``)
seed-0/state-0000410/    where training stood, until the seed is finished
seed-0/model/            the trained weights
seed-0/done.json         the seed is finished, or failed and why
report.json, values.csv  the report; done.json marks it complete
lock                     held by the one process that writes
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from string import hexdigits
from typing import Any, Literal

from rcprobe.errors import NoRunError, RunChangedError, RunError, UsageError
from rcprobe.facts import Dataset, Fact
from rcprobe.files import (
    TEMPORARY,
    flush_folder,
    inside,
    is_locked,
    locked,
    make_folder,
    read_json,
    remove_temporaries,
    strict,
    write_json,
)
from rcprobe.seed_folder import SeedFolder
from rcprobe.step_files import DONE, check_done, mark_done

SCHEMA = 1
MANIFEST, DATASET, REPORT, LOCK = "manifest.json", "dataset.json", "report.json", "lock"
RATES = "learning_rates.json"
State = Literal["finished", "running", "unfinished"]


@dataclass(frozen=True)
class RunFolder:
    """A run's folder. Reading it needs no lock: a file that is there is whole.

    Of several processes that train together one ``writes``; what the others are told to keep, they leave to it.
    """

    path: Path
    writes: bool = True

    def manifest(self) -> dict[str, Any]:
        """What the run is. Raises ``RunError`` if it isn't there, damaged, or of a newer rcprobe."""
        if not (self.path / MANIFEST).exists():
            raise NoRunError(
                f"{self.path}: no run is kept there (it has no {MANIFEST}); rcprobe runs list FOLDER shows what is"
            )
        manifest = read_json(self.path / MANIFEST)
        schema = manifest.get("schema")
        settings = manifest.get("settings")
        if not isinstance(schema, int) or schema < 1 or not isinstance(settings, dict):
            raise RunError(f"{self.path / MANIFEST}: isn't a manifest that rcprobe wrote")
        if schema > SCHEMA:
            raise RunError(
                f"{self.path / MANIFEST}: written by a newer rcprobe (schema {schema}, this one knows {SCHEMA}); "
                "upgrade rcprobe to read it"
            )
        if not isinstance(settings.get("seeds"), list):
            raise RunError(f"{self.path / MANIFEST}: names no seeds, so it isn't a manifest that rcprobe wrote")
        return manifest

    def seed(self, seed: int) -> SeedFolder:
        """The part of one seed."""
        return SeedFolder(inside(self.path, f"seed-{seed}"), self.writes)

    def seeds(self) -> list[int]:
        """The seeds that the run has, finished or not. Raises ``RunError``."""
        return [int(seed) for seed in self.manifest()["settings"]["seeds"]]

    def dataset(self) -> Dataset:
        """The facts that were asked about. Raises ``RunError`` naming the file if it is damaged."""
        found = read_json(self.path / DATASET)
        try:
            facts = tuple(Fact(**fact) for fact in found["facts"])
            readings = {name: tuple(tuple(group) for group in groups) for name, groups in found["readings"].items()}
            return Dataset(**{**found, "facts": facts, "readings": readings, "notes": tuple(found["notes"])})
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise RunError(f"{self.path / DATASET}: isn't what rcprobe writes ({error})") from error

    def tried_rates(self) -> dict[float, float | None] | None:
        """Learning rates that were tried, and how each answered forward queries; None before. Raises ``RunError``."""
        path = self.path / RATES
        if not path.exists():
            return None
        try:
            return {float(lr): None if value is None else float(value) for lr, value in read_json(path).items()}
        except (TypeError, ValueError) as error:
            raise RunError(f"{path}: isn't what rcprobe writes ({error})") from error

    def keep_tried_rates(self, tried: Mapping[float, float | None]) -> None:
        """Keep what choosing a learning rate found. Raises ``RunError``."""
        if self.writes:
            write_json(self.path / RATES, {repr(lr): value for lr, value in tried.items()})

    def finish(self) -> None:
        """Mark the report complete. Raises ``RunError``."""
        if self.writes:
            mark_done(self.path, [MANIFEST, DATASET, REPORT])

    def finished(self) -> bool:
        """Whether the report is complete."""
        return (self.path / DONE).exists()

    def check(self) -> None:
        """Hold manifest, facts and report against their digests. Raises ``RunError`` naming what is damaged."""
        self.manifest()
        if not self.finished():
            done, of = self.progress()
            raise RunError(
                f"{self.path}: unfinished, {done} of {of} steps are there; give the command of the run again to finish"
            )
        try:
            check_done(self.path)
        except RunError as error:
            if not str(error).startswith(str(self.path / REPORT)):
                raise
            raise RunError(
                f"{error}. Or remove {DONE} beside it and give the command of the run again: it is written anew from "
                "the steps, which are kept apart"
            ) from error

    def progress(self) -> tuple[int, int]:
        """How many steps of all seeds are finished, of how many; a seed that failed has no more to come."""
        stops, seeds = len(self.manifest().get("stops", ())), self.seeds()
        done = [len(self.seed(seed).numbers()) for seed in seeds]
        of = [n if self.seed(seed).finished() else stops for n, seed in zip(done, seeds, strict=True)]
        return sum(done), sum(of)

    def state(self) -> State:
        """Finished, being written by a process now, or left unfinished."""
        if self.finished():
            return "finished"
        return "running" if is_locked(self.path / LOCK) else "unfinished"

    def begin(self, manifest: Mapping[str, Any], dataset: Dataset) -> None:
        """Write what the run is, or make sure that it is the one kept here. Raises ``RunChangedError``."""
        if not self.writes:
            return
        if (self.path / MANIFEST).exists():
            there = self.manifest()["settings"]
            changes = differences(there, strict(manifest["settings"]))
            if changes:
                raise RunChangedError(
                    f"{self.path} holds a run that isn't this one; nothing was overwritten:\n  "
                    + "\n  ".join(changes)
                    + "\nask for what it holds to go on, or start over in another folder (run --fresh)"
                )
            return
        write_json(self.path / DATASET, dataset_json(dataset))
        write_json(self.path / MANIFEST, manifest)


@contextmanager
def open_run(out: str | Path, *, resume: Literal["auto", "never"] = "auto", fresh: bool = False) -> Iterator[RunFolder]:
    """The folder to keep a run in, held against other processes: new, or with a run to go on with.

    ``fresh`` takes a free name beside a folder that is in use: x, x-2, x-3. Raises ``UsageError`` for a folder that
    can't be written or holds other files, ``RunError`` if another process writes there.
    """
    if not str(out).strip():
        raise UsageError("the folder for the results has an empty name; leave it away (out=, --out) to keep nothing")
    path = fresh_folder(Path(out)) if fresh else Path(out)
    try:
        make_folder(path)
        names = {p.name for p in path.iterdir()}
    except RunError as error:
        raise UsageError(str(error)) from error
    if MANIFEST in names and resume == "never":
        raise UsageError(f"{path}: a run is kept there already; name another folder, nothing was overwritten")
    if MANIFEST not in names and not _only_begun(names):
        raise UsageError(f"{path}: holds files already; name a new folder, nothing was overwritten")
    with locked(path / LOCK):
        remove_temporaries(path)  # of a process that was killed
        yield RunFolder(path)


def fresh_folder(path: Path) -> Path:
    """The first of x, x-2, x-3, … that is free or empty; a new one is made. Raises ``UsageError``."""
    path = path if path.name else path.resolve()
    for n in count(1):
        candidate = path if n == 1 else path.with_name(f"{path.name}-{n}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if candidate.is_dir() and not any(candidate.iterdir()):
                return candidate
        except OSError as error:
            raise UsageError(f"{candidate}: can't write there ({error.strerror})") from error
        else:
            flush_folder(candidate.parent)
            return candidate
    raise AssertionError("counting ended")


def differences(there: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Each setting that differs, as ``train.lr: 0.001 there, 0.01 now``."""
    found = []
    for key in dict.fromkeys([*there, *now]):
        a, b = there.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b and not (prefix == "conditions." and None in (a, b)):  # "metrics" says which are missing
            found.append(f"{prefix}{key}: {_shown(a)} there, {_shown(b)} now")
    return found


def dataset_json(dataset: Dataset) -> dict[str, Any]:
    """A dataset as it is kept."""
    return asdict(dataset)


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    if len(text) == 64 and not set(text) - set(hexdigits):
        return f"{text[:12]}…"
    return text if len(text) <= 60 else f"{text[:28]}…{text[-28:]}"


def _only_begun(names: set[str]) -> bool:
    """Whether a folder is empty, or was left by a process that died before its manifest was there."""
    rest = {name for name in names if not name.endswith(TEMPORARY)}
    return not names or rest == {LOCK} or rest == {LOCK, DATASET}
