import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rcprobe import Fact, TrainConfig, load
from rcprobe.encoding import Encoding
from rcprobe.errors import TrainingError, UsageError
from rcprobe.plugins import registry
from rcprobe.training import train
from rcprobe.training.objectives import OBJECTIVES
from rcprobe_plugins.studies.fast_trainer import record, tables_of
from rcprobe_plugins.studies.mask_queries import MaskQueries

FACTS = [Fact(c, c.upper(), ("{a}0{b}0", "00{a}{b}"), ("{b}0{a}0", "00{b}{a}")) for c in "abcd"]
CONFIG = TrainConfig(steps=20, lr=0.01, warmup=5, clip=0.5, ema=0.9, batch_size=8, weight_decay=0.1, probe_at=(7,))


class Learned(Encoding):
    """Uses the whole contract, each part with weights of its own; what a token enters with depends on its neighbour."""

    reads_distance_only, values_carry_position = False, True

    def __init__(self, width, heads, max_length):
        super().__init__(width, heads, max_length)
        self.slope = nn.Parameter(torch.linspace(0.1, 0.5, heads))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width // heads))
        self.shift = nn.Linear(width, width)

    def embed(self, x):
        return x + self.shift(x.roll(1, dims=1))

    def rotate(self, query, key):
        return query * self.scale, key - self.scale * torch.arange(key.shape[2])[:, None]

    def bias(self, length):
        position = torch.arange(length)
        return (self.slope[:, None, None] * (position[:, None] - position))[None]

    def place(self, value):
        return value + self.scale * torch.arange(value.shape[2])[:, None]

    def read(self, mixed):
        return mixed * torch.linspace(1.0, 2.0, mixed.shape[2])[:, None] + self.scale


class ByToken(Learned):
    """The same, but each token by itself."""

    def embed(self, x):
        return x + self.shift(x) * torch.linspace(1.0, 2.0, x.shape[1])[:, None]


class Normalised(Encoding):
    """Turns queries and keys by no affine map."""

    def rotate(self, query, key):
        return query / query.norm(dim=-1, keepdim=True), key / key.norm(dim=-1, keepdim=True)


class Clamped(Encoding):
    """Turns queries and keys by an affine map near zero, where training begins, and by none farther out."""

    def rotate(self, query, key):
        return query.clamp(-3.0, 3.0), key.clamp(-3.0, 3.0)


class Drawn(Encoding):
    """Adds a table that each model draws for itself and doesn't train."""

    def __init__(self, width, heads, max_length):
        super().__init__(width, heads, max_length)
        self.register_buffer("table", torch.randn(max_length, width))

    def embed(self, x):
        return x + self.table[: x.shape[1]]


class Frozen(Encoding):
    """Adds a table that isn't trained."""

    def __init__(self, width, heads, max_length):
        super().__init__(width, heads, max_length)
        self.table = nn.Parameter(torch.randn(max_length, width), requires_grad=False)

    def embed(self, x):
        return x + self.table[: x.shape[1]]


class Dropping(Encoding):
    """Drops some of what it is given while it is trained."""

    def __init__(self, width, heads, max_length):
        super().__init__(width, heads, max_length)
        self.dropout = nn.Dropout(0.5)

    def embed(self, x):
        return self.dropout(x)


class Louder(Encoding):
    """Another map in training, with nothing drawn."""

    def embed(self, x):
        return 2 * x if self.training else x


OWN = {
    "learned": Learned, "by token": ByToken, "normalised": Normalised, "clamped": Clamped, "drawn": Drawn,
    "frozen": Frozen, "dropping": Dropping, "louder": Louder,
}  # fmt: skip


def tiny(name, encoding, seed, **options):
    options = {"width": 8, "max_length": 8, "heads": 2, "depth": 2, **options}
    m = load(name, options={**options, "encoding": "alibi" if encoding in OWN else encoding}, seed=seed)
    if encoding in OWN:
        torch.manual_seed(seed)
        m.model.encoding = OWN[encoding](8, options["heads"], 8)
    m.model.double()
    return m


def plain(m, seed, config=CONFIG):
    for stop in train(m, FACTS, config, seed):
        yield stop, [p.detach().clone() for p in m.model.parameters()]


def bundled():
    return registry().names("encodings")


@pytest.mark.parametrize("name", ["radd", "gpt2-mini"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("encoding", [*bundled(), *OWN])
def test_side_by_side_gives_each_seed_the_plain_trainers_numbers(name, depth, encoding):
    models = [tiny(name, encoding, seed, depth=depth) for seed in (3, 4)]
    recordings = record(copy.deepcopy(models), FACTS, CONFIG, [3, 4])
    for m, seed, recording in zip(models, (3, 4), recordings, strict=True):
        replayed = copy.deepcopy(m)
        replays = recording.replay(replayed, FACTS, CONFIG, seed)
        for (expected, weights), found in zip(plain(m, seed), replays, strict=True):
            assert found.step == expected.step
            assert found.loss == (expected.loss and pytest.approx(expected.loss, rel=1e-9))
            for parameter, weight in zip(replayed.model.parameters(), weights, strict=True):
                torch.testing.assert_close(parameter.detach(), weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("maskable", ["all", "entities"])
@pytest.mark.parametrize("objective", [o.name for o in OBJECTIVES.values() if o.kind == "masked"])
def test_every_objective_gives_the_plain_trainers_numbers(objective, maskable):
    config = TrainConfig(steps=4, lr=0.01, batch_size=6, ema=0.5, objective=objective, maskable=maskable)
    m = tiny("radd", "rope", 1, depth=1)
    (recording,) = record([copy.deepcopy(m)], FACTS, config, [1])
    (stop, last) = list(plain(m, 1, config))[-1]
    assert recording.stops[-1][0].loss == pytest.approx(stop.loss, rel=1e-9)
    weights = nn.utils.parameters_to_vector(last)
    torch.testing.assert_close(torch.from_numpy(recording.stops[-1][1]), weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoding", ["louder", "drawn", "clamped"])
def test_a_seeds_numbers_do_not_depend_on_how_many_there_are(encoding):
    m = tiny("radd", encoding, 3, depth=1)
    (recording,) = record([copy.deepcopy(m)], FACTS, CONFIG, [3])
    (_, last) = list(plain(m, 3))[-1]
    weights = nn.utils.parameters_to_vector(last)
    torch.testing.assert_close(torch.from_numpy(recording.stops[-1][1]), weights, rtol=1e-9, atol=1e-9)


def test_raw_weights_are_recorded_without_averaging():
    m, config = tiny("radd", "rope", 0, depth=1), TrainConfig(steps=3, ema=0.0, batch_size=4)
    (recording,) = record([m], FACTS, config, [0])
    (_, last) = list(plain(m, 0, config))[-1]
    torch.testing.assert_close(torch.from_numpy(recording.stops[-1][1]), nn.utils.parameters_to_vector(last))


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["side by side", "one by one"])
def test_a_seed_that_diverges_leaves_the_others_alone(dropout):
    models = [tiny("radd", "alibi", seed, dropout=dropout) for seed in (5, 6)]
    with torch.no_grad():
        models[0].model.lm_head.bias[3] = torch.nan
    lost, fine = record(models, FACTS, CONFIG, [5, 6])
    with pytest.raises(TrainingError, match=r"step 7, seed 5"):
        list(lost.replay(models[0], FACTS, CONFIG, 5))
    assert [stop.step for stop in fine.replay(models[1], FACTS, CONFIG, 6)] == [0, 7, 20]


LENGTHS = [Fact("a", "A", ("{a}{b}", "{a}0{b}"), ("{b}{a}", "{b}0{a}"))]


def others():
    """What isn't trained side by side: model, facts and settings."""
    otherwise = tiny("radd", "rope", 0)
    otherwise.model.blocks[1].mlp[1] = nn.ReLU()
    llama = load("llama", options={"alphabet": "0abcdABCD"})
    return {
        "dropout": (tiny("radd", "rope", 0, dropout=0.1), FACTS, CONFIG),
        "lengths": (tiny("radd", "rope", 0), LENGTHS, CONFIG),
        "another forward": (otherwise, FACTS, CONFIG),
        "no tiny model": (llama, FACTS, CONFIG),
        "bfloat16": (tiny("radd", "rope", 0), FACTS, replace(CONFIG, precision="bfloat16")),
    }


@pytest.mark.parametrize("what", others())
def test_what_cannot_be_trained_side_by_side_is_trained_alone(what):
    m, facts, config = others()[what]
    start, told = nn.utils.parameters_to_vector(m.model.parameters()).detach().clone(), []
    models = [copy.deepcopy(m), copy.deepcopy(m)]
    recordings = record(models, facts, config, [3, 4], lambda step, steps: told.append(step))
    for seed, recording in zip((3, 4), recordings, strict=True):
        here = copy.deepcopy(m)
        for stop, (checkpoint, weights) in zip(train(here, facts, config, seed), recording.stops, strict=True):
            assert checkpoint == stop
            own = nn.utils.parameters_to_vector(here.model.parameters()).detach()
            torch.testing.assert_close(torch.from_numpy(weights), own, rtol=0, atol=0)
    assert torch.equal(nn.utils.parameters_to_vector(models[1].model.parameters()), start)
    assert told == sorted(told)
    assert told[-1] == config.steps


@pytest.mark.parametrize("changes", [{"method": "lora"}, {"lr_grid": (1e-3, 1e-2)}])
def test_what_a_study_does_not_do_is_refused(changes):
    with pytest.raises(UsageError, match=r"need rcprobe\.run"):
        record([tiny("radd", "rope", 0)], FACTS, replace(CONFIG, **changes), [0])


def ids_of(m):
    return torch.tensor([m.tokenizer(text)["input_ids"] for text in ("0aA0", "a00A", "00bB", "b0B0")])


@pytest.mark.parametrize("encoding", [*bundled(), "by token"])
@pytest.mark.parametrize("heads", [1, 2])
def test_one_layer_asked_at_its_masks_looks_tokens_up(encoding, heads):
    m = tiny("radd", encoding, 0, depth=1, heads=heads)
    assert isinstance(tables_of(m, ids_of(m)), MaskQueries)


@pytest.mark.parametrize(
    ("name", "encoding", "depth"),
    [
        ("radd", "learned", 1),
        ("radd", "normalised", 1),
        ("radd", "clamped", 1),
        ("radd", "rope", 2),
        ("gpt2-mini", "rope", 1),
    ],
)
def test_what_no_table_holds_is_computed_token_by_token(name, encoding, depth):
    m = tiny(name, encoding, 0, depth=depth)
    assert tables_of(m, ids_of(m)) is None
