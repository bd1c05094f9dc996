"""What ``rcprobe run`` can refuse before it imports anything heavy: a typo shouldn't cost the loading of a model."""

from pathlib import Path

from rcprobe.config import RunConfig
from rcprobe.errors import UnknownNameError, UsageError
from rcprobe.plugins import registry


def refuse(asked: RunConfig, config: str | None) -> None:
    """Raise ``UsageError`` or ``UnknownNameError`` for what was asked wrongly; ``config`` is the file it came from."""
    for name in ("model", "dataset"):
        if not getattr(asked, name).strip():
            raise UsageError(f"no {name} is named; rcprobe run MODEL DATASET, or {name} = … in the file of --config")
    names = registry()
    if Path(asked.dataset).suffix not in names.names("datasets"):
        names.entry("datasets", asked.dataset)
    for metric in asked.metrics or ():
        names.entry("metrics", metric)
    if asked.adapter is not None and asked.adapter not in names.names("models"):
        raise UnknownNameError("family (--adapter)", asked.adapter, names.names("models"))
    if asked.seeds < 1:
        raise UsageError(f"seeds is {asked.seeds}; use 1 or more")
    if config is not None and config.endswith(".json"):
        _refuse_lost(asked, config)


def _refuse_lost(asked: RunConfig, config: str) -> None:
    """A manifest has the last name alone of folders and files outside the run."""
    a_table = asked.dataset not in registry().names("datasets")
    places = {
        "rcprobe run FOLDER": asked.model if asked.model.startswith("./") else None,
        "rcprobe run MODEL FILE": asked.dataset if a_table else None,
        "--peft": asked.peft,
    }
    for way, place in places.items():
        if place is not None and not Path(place).exists():
            raise UsageError(
                f"{config}: {Path(place).name!r} isn't here, and a manifest doesn't say where folders and files lay; "
                f"name it again: {way} … --config {config}"
            )
