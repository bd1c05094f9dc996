"""The bundled plugins: registered through the same hooks, and the same entry points, as anybody's."""

from typing import TYPE_CHECKING

from rcprobe.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_models(register: Register) -> None:
    """The tiny models, the families of released ones, and what takes the rest by inspection."""
    register("radd", "rcprobe_plugins.models.radd:Radd")
    register("gpt2-mini", "rcprobe_plugins.models.gpt2_mini:Gpt2Mini")
    register("llada", "rcprobe_plugins.models.llada:Llada")
    register("dream", "rcprobe_plugins.models.dream:Dream")
    register("a2d", "rcprobe_plugins.models.a2d:A2d")
    register("llama", "rcprobe_plugins.models.llama:Llama")
    register("qwen", "rcprobe_plugins.models.qwen:Qwen")
    register("gpt2", "rcprobe_plugins.models.gpt2:Gpt2")
    register("masked_lm", "rcprobe_plugins.models.masked_lm:MaskedLm")
    register("auto", "rcprobe_plugins.models.auto:Auto")


@hookimpl
def register_encodings(register: Register) -> None:
    """Encodings of the tiny models."""
    register("rope", "rcprobe_plugins.encodings.rope:Rope")
    register("alibi", "rcprobe_plugins.encodings.alibi:Alibi")
    register("absolute", "rcprobe_plugins.encodings.absolute:Absolute")
    register("sinusoidal", "rcprobe_plugins.encodings.sinusoidal:Sinusoidal")
    register("t5", "rcprobe_plugins.encodings.t5:T5")
    register("nope", "rcprobe_plugins.encodings.nope:Nope")
    register("turned-values", "rcprobe_plugins.encodings.turned_values:TurnedValues")


@hookimpl
def register_datasets(register: Register) -> None:
    """The controlled letters task, facts in text, and tables: a name that is a suffix reads files of that suffix."""
    register("letters", "rcprobe_plugins.datasets.letters:letters")
    register("capitals", "rcprobe_plugins.datasets.bundled:capitals")
    register("elements", "rcprobe_plugins.datasets.bundled:elements")
    register("parent-child", "rcprobe_plugins.datasets.parent_child:parent_child")
    register("person-description", "rcprobe_plugins.datasets.person_description:person_description")
    register("t-rex", "rcprobe_plugins.datasets.t_rex:t_rex")
    for name in ("table", ".csv", ".tsv", ".jsonl", ".parquet"):
        register(name, "rcprobe_plugins.datasets.table:table")


@hookimpl
def register_metrics(register: Register) -> None:
    """The three signatures, the outcome, accuracy, and on request what stands beside them."""
    for name in (
        "storage",
        "attention_correlation",
        "gradient_alignment",
        "reverse_probability",
        "accuracy",
        "answers",
        "span_correlation",
        "training_alignment",
        "route_knockout",
    ):
        register(name, f"rcprobe_plugins.metrics.{name}:{name}")


@hookimpl
def register_decoders(register: Register) -> None:
    """Orders in which masks are filled."""
    for name in ("confidence", "entropy", "margin", "random", "sequential"):
        register(name, f"rcprobe_plugins.decoders.ranked:{name}")


@hookimpl
def register_commands(cli: "typer.Typer") -> None:
    """``rcprobe demo`` and ``rcprobe reproduce``."""
    from rcprobe_plugins.studies import demo, reproduce

    cli.command("demo")(demo.command)
    cli.command("reproduce")(reproduce.command)
