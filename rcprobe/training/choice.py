"""Which learning rate: the one of a grid that answers forward queries best. Reverse queries are never asked."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from rcprobe.errors import DataError, TrainingError
from rcprobe.facts import Dataset
from rcprobe.loaded import LoadedModel
from rcprobe.probing.engine import observe
from rcprobe.queries import encode
from rcprobe.training.config import TrainConfig
from rcprobe.training.method import adapted, put_trained_state, trained_state
from rcprobe.training.trainer import train

Progress = Callable[[int, int], None]
Tried = Mapping[float, float | None]


def try_rates(
    m: LoadedModel,
    dataset: Dataset,
    config: TrainConfig,
    progress: Progress | None = None,
    *,
    tried: Tried | None = None,
    keep: Callable[[Tried], None] | None = None,
) -> dict[float, float | None]:
    """For each rate of ``config.lr_grid``: the mean log p of the forward answers at the last step, b asked from a.

    Each training starts from the model as it is, on the first seed, and leaves it so; the facts are the trained ones,
    under the templates that are asked (held-out ones, where a dataset teaches others). None where training diverged.
    Rates ``tried`` before aren't tried again; ``keep`` is given what is known after each.
    """
    found = dict(tried or {})
    for number, lr in enumerate(config.lr_grid):
        if lr in found:
            continue

        def heard(step: int, of: int, number: int = number) -> None:
            if progress is not None:
                progress(number * of + step, len(config.lr_grid) * of)

        found[lr] = _answered(m, dataset, replace(config, lr=lr, lr_grid=(), probe_every=None, probe_at=()), heard)
        if keep is not None:
            keep(found)
    return found


def _answered(m: LoadedModel, dataset: Dataset, config: TrainConfig, heard: Progress) -> float | None:
    """The forward answers after one training, after which the model is as it was; None where it diverged."""
    weights = trained_state(m.model) if config.method == "full" else {}  # adapters come and go by themselves
    try:
        with adapted(m, config, config.seed, keep=False):
            for _ in train(m, dataset.facts, config, config.seed, heard):
                pass
            value = forward_log_prob(m, dataset)
    except TrainingError:
        return None
    finally:
        put_trained_state(m.model, weights)
        m.model.eval()
    return value if math.isfinite(value) else None


def best_rate(tried: Mapping[float, float | None]) -> float:
    """The rate with the best forward answers. Raises ``TrainingError`` where every training diverged."""
    sound = {lr: value for lr, value in tried.items() if value is not None}
    if not sound:
        raise TrainingError(f"training diverged at every learning rate of the grid ({_listed(tried)}); try lower ones")
    return max(sound, key=lambda lr: sound[lr])


def said(tried: Mapping[float, float | None]) -> str:
    """The choice in a sentence."""
    return (
        f"learning rate {best_rate(tried):g}: of those tried, it answers the forward queries best "
        f"(mean log p: {_listed(tried)}); reverse queries had no part in it"
    )


def forward_log_prob(m: LoadedModel, dataset: Dataset) -> float:
    """Mean log p of b asked from a, over trained facts and template pairs that can be asked.

    Raises ``DataError`` where none can.
    """
    pairs = [replace(pair, reverse=pair.forward) for pair in encode(m, dataset.facts, "swapped") if pair.trained]
    asked = [pair for pair in pairs if pair.unsupported is None]
    if not asked:
        raise DataError("no forward query can be asked, so no learning rate can be chosen by them")
    seen = observe(m, asked, read={"log_probs"})
    assert seen.log_probs is not None
    return float(seen.log_probs[:, 0].mean())


def _listed(tried: Mapping[float, float | None]) -> str:
    return ", ".join(f"{lr:g} {'diverged' if value is None else f'{value:.3f}'}" for lr, value in tried.items())
