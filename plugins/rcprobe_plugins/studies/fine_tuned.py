"""The paper's large-scale half (Fig. 4, 6, Tab. 7): which models are fine-tuned on which facts, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcprobe.facts import Dataset
    from rcprobe.loaded import LoadedModel
    from rcprobe.report import Report
    from rcprobe.training import TrainConfig

MODELS = {  # the paper's names, and the weights taken for them here: it doesn't say base or instruct
    "LLaDA 8B": "GSAI-ML/LLaDA-8B-Base",
    "Dream 7B": "Dream-org/Dream-v0-Base-7B",
    "LLaMA-3.1 8B": "meta-llama/Llama-3.1-8B",
    "Qwen-2.5 7B": "Qwen/Qwen2.5-7B",
    "Qwen-3.5 4B": "Qwen/Qwen3.5-4B",
}
DATA: Mapping[str, tuple[str, Mapping[str, Any]]] = {  # what is trained on: the dataset and its options
    "Parent→Child": ("parent-child", {"direction": "P2C"}),
    "Child→Parent": ("parent-child", {"direction": "C2P"}),
    "Person→Description": ("person-description", {"direction": "P2D"}),
    "Description→Person": ("person-description", {"direction": "D2P"}),
    "T-REx": ("t-rex", {}),
}
PANELS = {"fig4": ("LLaDA 8B",), "fig6": ("Dream 7B",)}  # each on Parent→Child
MINI_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MINI_FACTS = 24
MINI_DATA = "Capitals, exchanged"
EXCHANGED = "exchanged: every a stands with a b that isn't its own, all of one length in tokens"


@dataclass(frozen=True)
class Tuning:
    """One model to be fine-tuned on one direction of a dataset.

    ``source`` is a folder or hub id; a ``converted`` causal model is made bidirectional first (``convert``).
    ``exchanged`` facts are made of the dataset's names (``exchanged``).
    """

    model: str
    source: str
    trained_on: str
    dataset: str
    dataset_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    limit: int | None = None
    converted: bool = False
    exchanged: bool = False
    dtype: str = "float32"

    @property
    def label(self) -> str:
        """As tables and figures name it."""
        return f"{self.model}, {self.trained_on}"

    @property
    def folder(self) -> str:
        """The name of the folder that its run is kept in."""
        from rcprobe.files import safe_name

        return safe_name(self.label.replace("→", "-to-").replace(", ", "-").replace(" ", "-").lower())


def paper_tunings(table: str, data: Path | None) -> list[Tuning]:
    """The paper's runs behind a table or figure. ``data`` holds the public files, a folder a dataset."""
    models = PANELS.get(table, tuple(MODELS))
    trained_on = tuple(DATA) if table == "tab7" else ("Parent→Child",)
    found = []
    for name in trained_on:
        dataset, options = DATA[name]
        place = {} if data is None else {"path": str(data / dataset.replace("-", "_"))}
        found += [
            Tuning(model, MODELS[model], name, dataset, {**options, **place}, dtype="bfloat16") for model in models
        ]
    return found


def mini_tunings(source: str) -> list[Tuning]:
    """The same on a CPU: a small causal model and its bidirectional conversion, on facts that neither can know."""
    return [
        Tuning(name, source, MINI_DATA, "capitals", limit=MINI_FACTS, converted=converted, exchanged=True)
        for name, converted in (("causal", False), ("converted", True))
    ]


def paper_training() -> "TrainConfig":
    """What one card of 48 or 80 GB takes with an 8B model in bfloat16. The paper's own settings aren't known here."""
    from rcprobe.training import TrainConfig

    return TrainConfig(
        steps=3000, lr=2e-4, betas=(0.9, 0.999), warmup=100, batch_size=32, accumulate=4, ema=0.0, method="lora",
        rank=16, alpha=32, precision="bfloat16", checkpointing=True, probe_at=(100, 300, 1000),
    )  # fmt: skip


def mini_training() -> "TrainConfig":
    """Some minutes on two cores."""
    from rcprobe.training import TrainConfig

    return TrainConfig(
        steps=160, lr=3e-4, betas=(0.9, 0.99), warmup=20, batch_size=16, ema=0.0, probe_at=(40, 80)
    )  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """What came of some runs: each one's report, and why others ended without one."""

    reports: "Mapping[Tuning, Report]"
    failed: Mapping[Tuning, str]


def run_tunings(
    tunings: Sequence[Tuning], training: "TrainConfig", seeds: int, folder: Path | None, *, show: bool
) -> Tuned:
    """Each one's report; with a folder each is kept there, and one that was begun goes on.

    A run that fails doesn't keep the others from theirs. Raises what ``load_dataset`` raises, before the first
    training, and what the last run raised if none ended with a report.
    """
    from rcprobe.errors import RcprobeError
    from rcprobe.metrics import registered_metrics
    from rcprobe.runner import load_dataset, run

    data = {tuning: load_dataset(tuning.dataset, tuning.dataset_options) for tuning in tunings}
    metrics = [metric for metric in registered_metrics() if not metric.on_request or metric.name == "answers"]
    reports: dict[Tuning, Report] = {}
    failed: dict[Tuning, str] = {}
    for tuning in tunings:
        try:
            m = load_tuned(tuning)
            dataset = data[tuning].limited(None if tuning.exchanged else tuning.limit)
            reports[tuning] = run(
                m,
                exchanged(m, dataset, tuning.limit) if tuning.exchanged else dataset,
                metrics=metrics,
                train=training,
                seeds=seeds,
                out=None if folder is None else folder / tuning.folder,
                progress=show,
            )
        except RcprobeError as error:
            failed[tuning] = str(error)
            if len(failed) == len(tunings):
                raise
    return Tuned(reports, failed)


def exchanged(m: "LoadedModel", dataset: "Dataset", count: int | None) -> "Dataset":
    """``count`` facts that no model can know: names of the dataset, each a with a b that isn't its own.

    All a's have one length in the model's tokens, and all b's, so that the prompts of one wording are alike: score
    correlation is taken among alike prompts, and a control needs another fact's answer of the same length. Raises
    ``DataError`` where fewer than two names are alike.
    """
    from rcprobe.errors import DataError
    from rcprobe.facts import Dataset, Fact

    first = dataset.facts[0]
    names = [_alike(m, [fact.a for fact in dataset.facts]), _alike(m, [fact.b for fact in dataset.facts])]
    n = min(len(names[0]), len(names[1]), count or len(dataset.facts))
    true = {(fact.a, b) for fact in dataset.facts for b in (fact.b, *fact.b_answers)}
    true |= {(a, fact.b) for fact in dataset.facts for a in fact.a_answers}
    for turn in range(n):
        pairs = [(names[0][i], names[1][(i + turn) % n]) for i in range(n)]
        if n > 1 and not true & set(pairs):
            facts = tuple(Fact(a, b, first.forward, first.reverse) for a, b in pairs)
            return Dataset(dataset.name, facts, notes=(EXCHANGED, *dataset.notes))
    raise DataError(f"{dataset.name}: no two facts have names of one length in tokens that can be exchanged")


def _alike(m: "LoadedModel", names: Sequence[str]) -> list[str]:
    """Names of the commonest length in tokens, at the start of a text and inside."""
    from rcprobe.queries import token_ids

    lengths = [[len(token_ids(m.tokenizer, text) or ()) for text in (name, f" {name}")] for name in names]
    commonest = max(lengths, key=lengths.count)
    return list(dict.fromkeys(name for name, length in zip(names, lengths, strict=True) if length == commonest))


def load_tuned(tuning: Tuning) -> "LoadedModel":
    """The model before fine-tuning, on a GPU where there is one."""
    import torch

    from rcprobe.loading import load
    from rcprobe_plugins.models.a2d import convert

    m = load(tuning.source, device="cuda" if torch.cuda.is_available() else "cpu", dtype=tuning.dtype)
    return convert(m, shift=1) if tuning.converted else m  # what it knows of the next token stays of use
