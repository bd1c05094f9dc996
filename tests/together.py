"""Two processes that train together, as ``torchrun`` starts them: prints what each ended with."""

import json
import sys
from pathlib import Path

import torch

import rcprobe
import rcprobe.report.html
import rcprobe.runner as runner
from rcprobe.errors import UsageError
from rcprobe.training import state, train
from rcprobe.training.processes import processes

CONFIG = rcprobe.TrainConfig(steps=6, batch_size=5, accumulate=2, probe_at=(3,), warmup=2, clip=0.05)


def model():
    m = rcprobe.load("radd", options={"width": 8, "max_length": 4}, dtype="float64")
    with torch.no_grad():
        for parameter in m.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return m


def trained(folder):
    """Fingerprint of the weights at the end, the losses, and the report."""
    facts = rcprobe.load_dataset("letters", {"length": 3}).limited(3)
    m = model()
    report = rcprobe.run(m, facts, metrics=["reverse_probability"], train=CONFIG, out=folder, progress=False)
    weights = torch.cat([parameter.detach().flatten() for parameter in m.model.parameters()])
    return {
        "weights": weights.tolist(),
        "losses": [step.loss for step in report.runs[0].steps],
        "reverse": report.frame("reverse_probability")["reverse"].tolist(),
    }


def stopped_and_gone_on(folder):
    """The same, stopped after the probe at step 3 with its state kept."""
    state.KEEP_EVERY, state.KEEP_SHARE = 0.0, float("inf")
    real = runner.train_model

    def short(*args, **options):
        for stop in train(*args, **options):
            yield stop
            if stop.step == 3:
                raise KeyboardInterrupt

    defaults = runner.run_seed.__defaults__
    runner.run_seed.__defaults__ = tuple(short if value is real else value for value in defaults)
    try:
        trained(folder)
    except KeyboardInterrupt:
        runner.run_seed.__defaults__ = defaults
        return trained(folder)
    raise AssertionError("it wasn't stopped")


if __name__ == "__main__":
    rcprobe.report.html.panel_svg = lambda panel, key, label: "<svg></svg>"  # drawing is not what is tried here
    place = Path(sys.argv[1])
    found = {"whole": trained(place / "whole"), "gone on": stopped_and_gone_on(place / "stopped")}
    try:
        list(
            train(
                model(),
                rcprobe.load_dataset("letters", {"length": 3}).facts,
                rcprobe.TrainConfig(steps=1, batch_size=1),
                0,
            )
        )
    except UsageError as error:
        found["refused"] = str(error)
    (place / f"{processes().number}.json").write_text(json.dumps(found))
