"""Where a training stands: all that decides how it goes on, as tensors that can be kept and given back."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
KEEP_EVERY = 30.0  # seconds; what a killed training loses at most
KEEP_SHARE = 0.05  # of the time, at most, goes into keeping


class Randomness:
    """PyTorch's global random numbers (dropout) as one training draws them, apart from its caller's."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device if device.type == "cuda" else None
        with self._caller_untouched():
            torch.manual_seed(seed)
            self.states = self.now()

    @contextmanager
    def own(self) -> Iterator[None]:
        """This training's random numbers inside, the caller's again after."""
        with self._caller_untouched():
            self._put(self.states)
            try:
                yield
            finally:
                self.states = self.now()

    def now(self) -> dict[str, Tensor]:
        """The global states, by kind of device; inside ``own`` they are this training's."""
        found = {"cpu": torch.get_rng_state()}
        return found if self.device is None else {**found, "cuda": torch.cuda.get_rng_state(self.device)}

    def _put(self, states: State) -> None:
        torch.set_rng_state(states["cpu"])
        if self.device is not None:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def _caller_untouched(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[] if self.device is None else [self.device])


class Keeper:
    """Decides when the state is worth keeping: not too often, and not at too great a part of the time."""

    def __init__(self, keep: Callable[[int, State], None] | None) -> None:
        self.keep = keep
        self.due = time.monotonic() + KEEP_EVERY

    def offer(self, step: int, state: Callable[[], State]) -> None:
        """Keep the state after a step if it is time."""
        start = time.monotonic()
        if self.keep is None or start < self.due:
            return
        self.keep(step, state())
        end = time.monotonic()
        self.due = end + max(KEEP_EVERY, (end - start) / KEEP_SHARE)


def pack(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    randomness: Randomness,
    average: Mapping[str, Tensor],
    losses: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Trained weights, buffers, optimiser, random generators, averaged weights, and the losses since the last stop."""
    found = {f"parameter/{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    found |= {f"buffer/{name}": buffer for name, buffer in model.named_buffers()}
    for i, moments in optimiser.state_dict()["state"].items():
        found |= {f"optimiser/{i}/{name}": value for name, value in moments.items()}
    found |= {f"random/{name}": value for name, value in randomness.now().items()}
    found |= {f"average/{name}": value for name, value in average.items()}
    found["generator"] = generator.get_state()
    found["losses"] = torch.stack(list(losses)) if losses else torch.empty(0)
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


@torch.no_grad()
def unpack(
    state: State,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    randomness: Randomness,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Put a packed state back into its owners; returns what was given of ``average`` and ``losses``."""
    for kind, owners in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in owners:
            if f"{kind}/{name}" in state:
                tensor.copy_(state[f"{kind}/{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in under(state, "optimiser").items():
        i, _, name = key.partition("/")
        moments.setdefault(int(i), {})[name] = value.clone()
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    generator.set_state(state["generator"].clone())
    randomness.states = {name: value.clone() for name, value in under(state, "random").items()}
    return under(state, "average"), list(state["losses"].clone())


def under(state: State, prefix: str) -> dict[str, Tensor]:
    """The part of a state whose names start with a prefix and a slash, without it."""
    return {name.partition("/")[2]: value for name, value in state.items() if name.startswith(f"{prefix}/")}
