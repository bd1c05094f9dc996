"""What trackers are sent: a step's numbers and a report's verdicts, by name."""

import math
from collections.abc import Iterator

import numpy as np

from rcprobe.measured import Step
from rcprobe.report import Report, words
from rcprobe.signatures import Signature


def scalars(step: Step) -> dict[str, float]:
    """The loss, accuracy both ways in each reading, and the mean of each measured column over what is defined.

    Values that are undefined are left out: a tracker knows no NaN.
    """
    return {name: value for name, value in _all(step) if math.isfinite(value)}


def verdicts(report: Report) -> dict[str, str]:
    """Signature → its verdict, with the estimate and interval of its first condition; a causal check says it is one."""
    return {name: _verdict(signature) for name, signature in report.signatures.items()}


def _verdict(signature: Signature) -> str:
    first = f", {words.interval(signature.findings[0])}" if signature.findings else ""
    return f"{signature.verdict}{first}" + (f" ({words.CHECK})" if signature.check else "")


def _all(step: Step) -> Iterator[tuple[str, float]]:
    if step.loss is not None:
        yield "loss", step.loss
    for pairing, readings in step.accuracy.items():
        for reading, (forward, reverse) in readings.items():
            yield f"accuracy, {pairing}/forward, {reading}", forward
            yield f"accuracy, {pairing}/reverse, {reading}", reverse
    for measured in step.measured:
        for column, values in measured.columns.items():
            defined = values[~np.isnan(values)]
            if len(defined):
                yield f"{measured.metric}, {measured.pairing}/{column}", float(defined.mean())
