"""The figures that the paper printed, as frames."""

import tomllib
from importlib.resources import files
from typing import Any

import pandas as pd

from rcprobe.errors import UnknownNameError


def published(table: str) -> pd.DataFrame:
    """A table of the paper (``"tab1"`` …), one row a figure or pair of figures, in the units that it was printed in.

    What the paper says of it (``what``, ``unit``, ``base`` …) and the ``source`` are in the frame's ``attrs``. Raises
    ``UnknownNameError`` for a table that isn't kept.
    """
    kept = _kept()
    source = kept.pop("source")
    if table not in kept:
        raise UnknownNameError("published table", table, kept)
    entry = kept[table]
    frame = pd.DataFrame(entry.pop("rows"), columns=entry.pop("columns"))
    frame.attrs.update(entry, source=source)
    return frame


def _kept() -> dict[str, Any]:
    return tomllib.loads(files("rcprobe_plugins.studies").joinpath("published.toml").read_text(encoding="utf-8"))
