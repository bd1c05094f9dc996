"""A model's history: checkpoints of one model, loaded one after the other into one place."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rcprobe.adapter import Adapter
from rcprobe.checkpoint import Reading, local_folder, raw_config
from rcprobe.errors import UsageError
from rcprobe.loaded import LoadedModel
from rcprobe.loading import load
from rcprobe.manifest import without_path
from rcprobe.model_files import check_kept
from rcprobe.plugins import registry
from rcprobe.training import TrainConfig
from rcprobe.weights import check_weights

KIND = ("model_type", "architectures")
ASIDE = {"_name_or_path", "transformers_version", "dtype", "use_cache"}  # what two saves of one model may differ in
STATE = {"padding", "truncation"}  # how a tokenizer was used last


@dataclass(frozen=True)
class Revision:
    """A checkpoint of a history: the ``step`` that it is probed as, and what ``load`` takes for it.

    ``weights`` says which weights they are: the commit of a hub's, the SHA-256 over a folder's.
    """

    name: str
    step: int
    source: str
    revision: str | None
    weights: str


def check_asked(revisions: Sequence[str], train: TrainConfig | None) -> None:
    """Raise ``UsageError`` for no revision, one named twice, and revisions of a model that is to be trained."""
    if train is not None:
        raise UsageError("revisions are probed as they are: leave out what trains (train=, --steps), or revisions")
    names = [without_path(name) for name in revisions]
    twice = [name for name in names if names.count(name) > 1]
    if not names or twice or not all(name.strip() for name in names):
        what = f"{twice[0]!r} is named twice" if twice else "one has an empty name" if names else "none is named"
        raise UsageError(f"revisions: {what}")


def places(model: str, names: Sequence[str]) -> list[tuple[str, str | None]]:
    """What ``load`` takes for each revision of ``model``: (a folder or file, None), or (a hub id, the revision).

    A folder's revisions are folders: in it, beside it, or by their own path. Raises ``UsageError`` naming what isn't
    there.
    """
    return [_place(model, name) for name in names]


def steps_of(names: Sequence[str]) -> list[int]:
    """The number in each name, where each has one and they ascend; else 1, 2, 3, …"""
    found = [re.findall(r"\d+", Path(name).name) for name in names]
    steps = [int(numbers[0]) for numbers in found if len(numbers) == 1]
    ascending = len(steps) == len(names) and sorted(set(steps)) == steps
    return steps if ascending else list(range(1, len(names) + 1))


def find_revisions(m: LoadedModel, names: Sequence[str]) -> tuple[Revision, ...]:
    """The revisions of a model, each brought here from the hub and looked at, and none loaded.

    Raises ``UsageError`` naming the first that isn't there, or that is another model or has another tokenizer than
    those before; ``AdapterError`` where its weights aren't whole.
    """
    found = places(m.source, names)
    _same_architecture(type(m.adapter), {name: raw_config(*at) for name, at in zip(names, found, strict=True)})
    pickled = bool(m.told.get("allow_pickle"))
    here = [local_folder(source, Reading(revision, allow_pickle=pickled)) for source, revision in found]
    files = [check_weights(at, pickled) for at in here]
    for at in here:
        check_kept(at, m)
    _same_tokenizer(dict(zip(names, here, strict=True)))
    return tuple(
        Revision(name, step, source, revision, f"commit {at.name}" if revision else f"sha256 {_digest(its)}")
        for name, step, (source, revision), at, its in zip(names, steps_of(names), found, here, files, strict=True)
    )


def become(m: LoadedModel, revision: Revision) -> None:
    """Load a revision in the place of the weights that ``m`` holds, as ``m`` was loaded; ``load`` verifies it."""
    told = {name: value for name, value in m.told.items() if name not in ("revision", "adapter")}
    dtype = None if "quantization_config" in told else str(m.dtype).removeprefix("torch.")
    device = str(m.device)
    m.replace_model(nn.Module())  # before the next is there: two may be more than memory holds
    loaded = load(
        revision.source,
        adapter=type(m.adapter),
        tokenizer=m.tokenizer,
        device=device,
        dtype=dtype,
        revision=revision.revision,
        **told,
    )
    m.replace_model(loaded.model)


def described(revisions: Sequence[Revision]) -> dict[str, str]:
    """Which revision each step is, by the revision's name."""
    return {without_path(found.name): f"step {found.step}, {found.weights}" for found in revisions}


def said(revisions: Sequence[Revision], most: int = 8) -> str:
    """The same in a sentence."""
    steps = ", ".join(f"{found.step} is {without_path(found.name)}" for found in revisions[:most])
    more = f", and {len(revisions) - most} more" if len(revisions) > most else ""
    return f"the steps are revisions of the model, which were trained elsewhere: {steps}{more}"


def _place(model: str, name: str) -> tuple[str, str | None]:
    if model in registry().names("models"):
        raise UsageError(f"revisions are checkpoints of a model in a folder or on the hub; {model!r} is built anew")
    at = Path(model)
    if at.exists():
        for found in (at / name, at.parent / name, Path(name)):
            if found.exists():
                return str(found), None
        raise UsageError(f"revision {name!r}: no such folder in {model}, nor beside it, nor as a path of its own")
    if "/" not in model:
        raise UsageError(f"revisions are checkpoints of a model in a folder or on the hub; {model!r} is neither")
    return model, name


def _same_architecture(family: type[Adapter], raw: Mapping[str, Mapping[str, Any]]) -> None:
    (first, start), *others = raw.items()
    of = family.config(start).to_dict()
    for name, other in others:
        kinds = {key: (start.get(key), other.get(key)) for key in KIND}
        differing = {key: both for key, both in kinds.items() if both[0] != both[1]}
        if not differing:  # a family understands its own kind alone
            config = family.config(other).to_dict()
            both = {key: (of.get(key), config.get(key)) for key in {**of, **config} if key not in ASIDE}
            differing = {key: (one, two) for key, (one, two) in both.items() if one != two}
        for key, (one, two) in differing.items():
            raise UsageError(
                f"revision {name!r} is another model than {first!r}: its {key} is {two!r}, not {one!r}; a history is "
                "of one architecture"
            )


def _same_tokenizer(folders: Mapping[str, Path]) -> None:
    """Those that have none of their own are read with the model's."""
    own = {name: at / "tokenizer.json" for name, at in folders.items() if (at / "tokenizer.json").is_file()}
    said = {name: _tokenizer(path) for name, path in own.items()}
    for name, tokenizer in said.items():
        first = next(iter(said))
        if tokenizer != said[first]:
            raise UsageError(f"revision {name!r} has another tokenizer than {first!r}; a history is of one tokenizer")


def _tokenizer(path: Path) -> dict[str, Any]:
    try:
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in STATE}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: can't be read as a tokenizer ({error})") from error


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
