"""Every hook a plugin may implement, and nothing else.

A plugin is a module (or object) named by an entry point of the group ``rcprobe``. The ``register`` hooks give
*names*, and where to find what they name, as ``"module:attribute"``: nothing is imported until it is asked for.
"""

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    import typer

    from rcprobe.measured import Step
    from rcprobe.report import Report

hookspec = pluggy.HookspecMarker("rcprobe")
hookimpl = pluggy.HookimplMarker("rcprobe")


class Register(Protocol):
    """How a plugin claims a name: ``register("llada", "my_package.llada:Llada")``."""

    def __call__(self, name: str, target: str) -> None:
        """Claim ``name`` for the object at ``target``, ``"module:attribute"``."""


@hookspec
def register_models(register: Register) -> None:
    """Name model families: each target is a subclass of ``rcprobe.Adapter``."""


@hookspec
def register_encodings(register: Register) -> None:
    """Name positional encodings of the tiny models."""


@hookspec
def register_datasets(register: Register) -> None:
    """Name datasets: each target is a function of its options that returns an ``rcprobe.Dataset``."""


@hookspec
def register_metrics(register: Register) -> None:
    """Name metrics: each target was made by ``rcprobe.metric``."""


@hookspec
def register_decoders(register: Register) -> None:
    """Name decoders: each target was made by ``rcprobe.decoding.decoder``."""


@hookspec
def register_commands(cli: "typer.Typer") -> None:
    """Add commands to the command line."""


@hookspec
def step_finished(step: "Step") -> None:
    """Observe a probed step of a run as soon as it is measured."""


@hookspec
def run_finished(report: "Report") -> None:
    """Observe the report of a finished run."""
