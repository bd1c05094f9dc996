"""From what seeds measured to a report that judges it."""

from collections.abc import Mapping, Sequence

from rcprobe.decoding import Decoding
from rcprobe.facts import Dataset
from rcprobe.loaded import LoadedModel
from rcprobe.manifest import describe
from rcprobe.metrics import Metric
from rcprobe.queries import encode
from rcprobe.report import Report, SeedRun, build
from rcprobe.training.config import TrainConfig


def summarise(
    m: LoadedModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    runs: Sequence[SeedRun],
    *,
    train: TrainConfig | None,
    decoding: Decoding | None = None,
    revisions: Mapping[str, str] | None = None,
) -> Report:
    """Judge seeds that were run, wherever they ran."""
    groups = next(iter(dataset.readings.values()), ())
    size = min((run.batch_size for run in runs), default=0)
    chance = 1 / (min(len(group) for group in groups) if groups else m.vocabulary)
    return build(
        dataset,
        metrics,
        runs,
        chance=chance,
        identities=_identities(m, dataset),
        info=describe(m, dataset, metrics, [run.seed for run in runs], train, size, decoding, revisions),
    )


def _identities(m: LoadedModel, dataset: Dataset) -> Mapping[str, str]:
    """What holds by construction of the facts' own prompts."""
    claimed = m.adapter.identities(m.model, mirrored=True)
    if not claimed:
        return {}
    pairs = [pair for pair in encode(m, dataset.facts) if pair.unsupported is None]
    mirrored = all(pair.forward.input_ids == pair.reverse.input_ids[::-1] for pair in pairs)
    return claimed if mirrored else m.adapter.identities(m.model, mirrored=False)
