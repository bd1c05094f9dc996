"""From what seeds measured to a report that judges it."""

from collections.abc import Mapping, Sequence

from rcprobe.decoding import Decoding
from rcprobe.facts import Dataset, QueryPair
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
    """What the family says holds by construction of mirrored prompts, if all of these are such."""
    claimed = m.adapter.identities(m.model)
    if not claimed:
        return {}
    pairs = [pair for pair in encode(m, dataset.facts) if pair.unsupported is None]
    return claimed if all(map(_mirrored, pairs)) else {}


def _mirrored(pair: QueryPair) -> bool:
    """Whether the reverse query is the forward one read backwards, each token of target and evidence in its turn."""
    forward, reverse = pair.forward, pair.reverse
    last = len(forward.input_ids) - 1
    return (
        forward.input_ids == reverse.input_ids[::-1]
        and forward.rows == tuple(last - row for row in reverse.rows)
        and forward.evidence_positions == tuple(last - place for place in reverse.evidence_positions)
    )
