"""How a model is trained."""

from dataclasses import dataclass

from rcprobe.errors import UsageError

MASKABLE = ("all", "entities", "completion")
METHODS = ("full", "lora")
PRECISIONS = ("bfloat16",)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of forward-only training.

    ``objective`` names one of ``rcprobe.training.objectives.OBJECTIVES``; None is the default of the model's family.
    ``maskable`` says which tokens a masked objective may mask: all; those of a fact's two entities alone (in the
    letters task, only letters), this project's control of what masked placeholders teach; or those of the completion,
    from the second entity to the end, as LLaDA's instruction tuning does (Nie et al., 2025).

    ``method`` "full" trains every parameter, "lora" fresh low-rank adapters of ``rank`` (scaled by ``alpha``/``rank``)
    on the modules that ``targets`` names, patterns as ``Adapter.lora_targets`` has them (none: the family's own).
    ``precision`` "bfloat16" computes forward and backward in it, the weights keep their own dtype; ``accumulate``
    works through a batch in so many parts, the gradient being that of the whole; ``checkpointing`` computes activations
    twice instead of keeping them.

    ``warmup`` counts steps of linear warm-up to a constant ``lr``; ``clip`` bounds the gradient's norm; ``ema`` is
    the decay of the averaged weights that are probed (0: the raw weights). ``probe_every`` probes each so many
    steps, ``probe_at`` names steps; step 0 and the last are always probed. ``seed`` is the first seed. With
    ``lr_grid``, ``lr`` is the one of those that answers forward queries best (``rcprobe.training.choice``).
    Raises ``UsageError`` for values out of range.
    """

    steps: int
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup: int = 100
    clip: float = 1.0
    batch_size: int = 64
    ema: float = 0.999
    probe_every: int | None = None
    probe_at: tuple[int, ...] = ()
    seed: int = 0
    objective: str | None = None
    maskable: str = "all"
    method: str = "full"
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()
    precision: str | None = None
    accumulate: int = 1
    checkpointing: bool = False
    lr_grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lows = {"steps": 1, "batch_size": 1, "warmup": 0, "probe_every": 1, "rank": 1, "alpha": 1, "accumulate": 1}
        for name, low in lows.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"training: {name} is {value}; it must be at least {low}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise UsageError(f"training: {name} is {getattr(self, name):g}; it must be positive")
        if not 0 <= self.ema < 1:
            raise UsageError(f"training: ema is {self.ema:g}; it must be at least 0 and below 1")
        if not all(lr > 0 for lr in self.lr_grid):
            raise UsageError("training: every lr of lr_grid must be positive")
        if not (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas) and self.weight_decay >= 0):
            raise UsageError("training: betas must be two numbers from 0 and below 1, weight_decay at least 0")
        choices = (("maskable", MASKABLE), ("method", METHODS), ("precision", (None, *PRECISIONS)))
        for name, known in choices:
            if getattr(self, name) not in known:
                kinds = ", ".join(kind for kind in known if kind)
                raise UsageError(f"training: {name} is {getattr(self, name)!r}; use one of {kinds}")
        if self.accumulate > self.batch_size:
            raise UsageError(f"training: accumulate is {self.accumulate}, and a batch has {self.batch_size} statements")
        outside = [k for k in self.probe_at if not 0 <= k <= self.steps]
        if outside:
            raise UsageError(f"training: probe_at names step {outside[0]}, training has {self.steps}")

    def probed(self) -> tuple[int, ...]:
        """The steps that are probed, in order."""
        every = range(0, self.steps + 1, self.probe_every) if self.probe_every else ()
        return tuple(sorted({0, *every, *self.probe_at, self.steps}))

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return self.lr * min(1.0, step / max(self.warmup, 1))
