"""The picture in README: how probable the right letter is along training, asked forward and in reverse.

$ .venv/bin/python examples/forward_and_reverse.py docs/_static

trains a masked diffusion model and a causal one on letter pairs, forward only, from five seeds each (a few minutes on
two cores), and writes probability.svg and the numbers behind it, probability.csv.
"""

import sys
from dataclasses import replace
from pathlib import Path

import rcprobe
from rcprobe.report.curves import probability
from rcprobe.report.figures import write_figures

MODELS = {
    "masked diffusion (RADD, RoPE)": ("radd", {"encoding": "rope", "width": 32}),
    "causal (GPT-2 style)": ("gpt2-mini", {"encoding": "absolute", "width": 32}),
}
READING = "52 letters"


def main(folder: Path, steps: int = 1000, seeds: int = 5) -> None:
    letters = rcprobe.load_dataset("letters", {"length": 6})
    train = rcprobe.TrainConfig(steps=steps, lr=3e-3, probe_every=max(1, steps // 20))
    panels = []
    for title, (model, options) in MODELS.items():
        m = rcprobe.load(model, options=options)
        report = rcprobe.run(m, letters, seeds=seeds, train=train, metrics=["reverse_probability"])
        figure = probability(report)
        [panel] = [panel for panel in figure.panels if panel.title.startswith(READING)]
        panels.append(replace(panel, title=title))
    write_figures([replace(figure, panels=tuple(panels))], folder, formats=["svg"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
