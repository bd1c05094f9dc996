"""``compare``: from runs to what each found, side by side, and to what can be said of their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcprobe.comparison import export
from rcprobe.comparison.contrasts import Contrast, Refusal, contrasts
from rcprobe.comparison.matrix import Line, matrix
from rcprobe.comparison.runs import Given, Group, Run, gather, group
from rcprobe.files import strict, write_bytes
from rcprobe.report.tables import csv_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    ``groups`` are runs that were asked the same facts; only inside one are runs compared. ``matrix`` has accuracy by
    dataset and model, ``contrasts`` the differences between every two runs, ``refusals`` what isn't compared and why.
    """

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    matrix: tuple[Line, ...]
    contrasts: tuple[Contrast, ...]
    refusals: tuple[Refusal, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Every accuracy, every condition of every signature and every difference, one row each, NaN where undefined.

        ``kind`` is accuracy, signature or difference; a difference is that of ``run`` less ``against``.
        """
        return export.rows(self)

    def frame(self) -> "pd.DataFrame":
        """``rows`` as a frame."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for strict JSON: undefined numbers are None."""
        return strict(export.as_dict(self))  # type: ignore[no-any-return]

    def to_csv(self) -> str:
        """``rows`` as CSV, in full precision."""
        return csv_text(self.rows())

    def to_markdown(self) -> str:
        """Its tables in Markdown, with what a reader must know above them."""
        return export.to_markdown(self)

    def to_latex(self) -> str:
        """Its tables, each naming the packages it needs, notes and reasons as comments."""
        return export.to_latex(self)

    def to_html(self, path: str | Path) -> None:
        """Write it as one page that needs no network and no other file.

        Raises ``MissingExtraError`` without matplotlib and jinja2, ``RunError`` where the file can't be written.
        """
        from rcprobe.comparison.html import page

        write_bytes(Path(path), page(self).encode())


def compare(runs: Sequence[Given] | Mapping[str, Given]) -> Comparison:
    """Set two or more runs side by side: reports, or the folders of finished runs; a mapping gives them names.

    Runs of the same facts are compared, by fact (paired) or by seed (Welch's t) as the dataset's replicate says, with
    Holm's correction over all differences; what can't be compared is named with its reason. Raises ``UsageError`` for
    fewer than two runs or two of one name, ``RunError`` for a run that isn't finished or is damaged.
    """
    gathered = gather(runs)
    groups = group(gathered)
    made, refused = contrasts(groups)
    return Comparison(gathered, groups, tuple(matrix(groups)), made, refused)
