"""What can go wrong, by name: every error says what was wrong, where, and the way out."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class RcprobeError(Exception):
    """Base of every error that rcprobe raises on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """By its message: pickling would call a constructor of other arguments, and a worker's error be lost."""
        return _again, (type(self), str(self)), self.__dict__


def _again(kind: type[RcprobeError], message: str) -> RcprobeError:
    error = kind.__new__(kind)
    error.args = (message,)
    return error


class UsageError(RcprobeError):
    """A request that can't be honoured as it was made: the caller mends it, nothing was computed."""

    exit_code = 2


FEW = 12  # names that a message can list beside its guess


class UnknownNameError(UsageError):
    """A name that no plugin registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = [f"did you mean {close[0]!r}?"] if close else []
        if not close or len(names) <= FEW:
            hint.append(f"known: {', '.join(names) or 'none'}")
        super().__init__(f"no {kind} is called {name!r}; {' '.join(hint)}")


class MissingExtraError(UsageError):
    """Something asked for needs packages that are installed on request."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}, which isn't installed: pip install 'rcprobe[{extra}]'")


class DataError(UsageError):
    """Facts, templates or texts that can't be asked."""


class PluginError(RcprobeError):
    """A plugin that can't be loaded or doesn't keep its contract."""


class AdapterError(RcprobeError):
    """A model that an adapter can't describe or load."""


class OptionError(AdapterError, UsageError):
    """An option that a model family doesn't know, or a value that it can't take."""

    exit_code = 2


class VerificationError(AdapterError):
    """A model that doesn't behave as its adapter declares: any number from it could be wrong."""


class CaptureError(RcprobeError):
    """A reading that can't be taken from this model."""


class RunError(RcprobeError):
    """A kept run that can't be written, or not be trusted: the message names the file."""


class NoRunError(RunError, UsageError):
    """A folder that holds no run, where one was named."""

    exit_code = 2


class RunChangedError(UsageError):
    """A run asked for in a folder that holds another: the message shows what differs."""


class TrainingError(RcprobeError):
    """Training that diverged; the message names the seed and the step."""
