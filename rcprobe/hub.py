"""The hub: what it gives, and an error that names the way around it where it gives nothing."""

from collections.abc import Callable
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rcprobe.errors import UsageError

PATIENCE = 5.0  # seconds until a hub that doesn't answer is given up
Given = TypeVar("Given")


def reachable() -> bool:
    """Whether the hub answers at all: its client would ask five times, for minutes, before it looks in its cache."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE):
            return True
    except HTTPError:  # an answer, if an unkind one
        return True
    except OSError:
        return False


def from_hub(source: str, what: str, download: Callable[[], Given], kind: str = "model") -> Given:
    """What ``download`` gives. Raises ``UsageError`` naming the way of a local copy."""
    try:
        return download()
    except Exception as error:  # the hub client raises many kinds, each meaning: not to be had
        of_kind = "" if kind == "model" else f" --repo-type {kind}"
        raise UsageError(
            f"{source}: no such folder, and the hub gave no {what} ({type(error).__name__}). Give the path of a local "
            f"copy instead (elsewhere: hf download {source}{of_kind} --local-dir FOLDER)"
        ) from error
