"""Answers as they are written: orders against a plain loop, schedules, and what a decoder may not do."""

import pytest
import torch
from test_engine import ALPHABET, FACTS, MASK, loaded, pairs_of

import rcprobe
from rcprobe import decoding
from rcprobe.config import read_config
from rcprobe.decoding import Decoder, Decoding, decode, decoder
from rcprobe.errors import PluginError, UnknownNameError, UsageError
from rcprobe.facts import Fact
from rcprobe.probing.engine import observe
from rcprobe_plugins.datasets.characters import character_tokenizer
from rcprobe_plugins.metrics.answers import right_answers

LONG = [
    Fact("abcde", "FG", "{a}00{b}", "{b}0{a}"),
    Fact("mnopq", "RS", "0{a}0{b}", "{b}00{a}0"),
    Fact("uv", "W", "0{a}0{b}", "{b}00{a}0"),
]


def queries_of(m, facts=LONG):
    pairs = [pair for pair in pairs_of(m, facts) if pair.unsupported is None]
    return [query for pair in pairs for query in (pair.forward, pair.reverse)]


def believed(m, ids):
    """log p of every position, the mask out of the running."""
    with torch.no_grad():
        logits = m.model(torch.tensor([ids])).logits[0]
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)


PREFERENCE = {
    "confidence": lambda lp: lp.amax(-1),
    "entropy": lambda lp: (lp.exp() * lp.clamp(min=-1e30)).sum(-1),
    "margin": lambda lp: lp.exp().topk(2).values @ torch.tensor([1.0, -1.0]).double(),
    "sequential": lambda lp: -torch.arange(len(lp)),
}


@pytest.mark.parametrize("name", PREFERENCE)
@pytest.mark.parametrize("batch_size", [1, 100])
def test_one_token_a_step_in_the_decoders_order(name, batch_size):
    m = loaded("radd rope")
    queries = queries_of(m)
    written = decode(m, queries, Decoding(name), batch_size=batch_size)
    for query, answer in zip(queries, written, strict=True):
        ids, left = list(query.input_ids), list(query.rows)
        while left:
            lp = believed(m, ids)[left]
            k = int(PREFERENCE[name](lp).argmax())
            ids[left.pop(k)] = int(lp[k].argmax())
        assert answer.ids == tuple(ids[i] for i in query.rows)
        assert answer.text == "".join(ALPHABET[i] for i in answer.ids)
        assert answer.steps == len(query.rows)


def test_one_step_takes_every_positions_best_token():
    m = loaded("radd rope")
    queries = queries_of(m)
    for query, answer in zip(queries, decode(m, queries, Decoding(steps=1)), strict=True):
        assert answer.ids == tuple(believed(m, query.input_ids)[list(query.rows)].argmax(-1).tolist())
        assert answer.steps == 1


def test_steps_and_blocks_are_kept_to():
    m = loaded("radd rope")
    seen = []

    @decoder()
    def watched(state):
        seen.append((state.positions.tolist(), state.count))
        return torch.arange(state.count)

    query = queries_of(m)[0]
    first = query.rows[0]
    monkey = {"confidence": watched}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "registry", lambda: type("R", (), {"checked": lambda *_: monkey["confidence"]})())
        assert decode(m, [query], Decoding(steps=2))[0].steps == 2
        assert decode(m, [query], Decoding(steps=4, block=2))[0].steps == 5
    assert seen[:2] == [([first + i for i in range(5)], 3), ([first + i for i in range(3, 5)], 2)]
    blocks = [[p - first for p in positions] for positions, _ in seen[2:]]
    assert blocks == [[0, 1], [1], [2, 3], [3], [4]]


def test_a_decoder_may_take_more_or_fewer_than_are_due_and_sees_attention(monkeypatch):
    m = loaded("radd rope")
    shapes = []

    @decoder(attention=True)
    def all_at_once(state):
        shapes.append((tuple(state.attention.shape), state.attention.sum(-1).max().item()))
        return torch.arange(len(state.positions))

    rules = type("R", (), {"checked": lambda *_: all_at_once})()
    monkeypatch.setattr(decoding, "registry", lambda: rules)
    (answer,) = decode(m, queries_of(m)[:1], Decoding(steps=5))
    assert answer.steps == 1
    assert shapes[0][0] == (2, 2, 5, 5)
    assert 0 < shapes[0][1] < 1  # the rest of a row's weight is on what isn't open


@pytest.mark.parametrize("chosen", [[], [0, 0], [7], [-1]])
def test_a_decoder_that_commits_what_it_may_not(chosen, monkeypatch):
    m = loaded("radd rope")
    rule = Decoder("bad", lambda _: torch.tensor(chosen, dtype=torch.long))
    monkeypatch.setattr(decoding, "registry", lambda: type("R", (), {"checked": lambda *_: rule})())
    with pytest.raises(PluginError, match="decoder 'bad' chose"):
        decode(m, queries_of(m)[:1])


def test_random_orders_and_temperatures_follow_the_seed():
    m = loaded("radd rope")
    queries = queries_of(m)

    def texts(**how):
        return [answer.text for answer in decode(m, queries, Decoding("random", **how))]

    assert texts(seed=3) == texts(seed=3)
    hot = [texts(temperature=5.0, seed=seed) for seed in range(4)]
    assert len({tuple(t) for t in hot}) > 1
    assert hot[0] == [a.text for q in queries for a in decode(m, [q], Decoding("random", temperature=5.0))]


def test_an_unknown_length_leaves_the_right_context_out():
    m = loaded("radd rope")
    query = queries_of(m)[0]  # five tokens, and more to their right
    (answer,) = decode(m, [query], Decoding("sequential", length=3))
    ids = [*query.input_ids[: query.rows[0]], MASK, MASK, MASK]
    for position in range(len(ids) - 3, len(ids)):
        ids[position] = int(believed(m, ids)[position].argmax())
    assert answer.ids == tuple(ids[-3:])


def test_a_causal_model_writes_from_left_to_right_whatever_the_decoder():
    m = loaded("gpt2-mini")
    queries = queries_of(m, [*FACTS[:2], Fact("jk", "LMN", "{a}0{b}", "{b}0{a}")])
    for length in (None, 4):
        for query, answer in zip(
            queries, decode(m, queries, Decoding("nothing of the kind", length=length)), strict=True
        ):
            ids = list(query.input_ids[: query.rows[0] + 1])
            for _ in range(length or len(query.target_ids)):
                with torch.no_grad():
                    ids.append(int(m.model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert answer.ids == tuple(ids[query.rows[0] + 1 :])


def test_a_causal_model_stops_at_its_end_token():
    m = loaded("gpt2-mini")
    query = queries_of(m, FACTS[:1])[0]
    (whole,) = decode(m, [query], Decoding(length=5))
    m.tokenizer = character_tokenizer(ALPHABET, mask=False)
    m.tokenizer.eos_token = ALPHABET[whole.ids[1]]
    (short,) = decode(m, [query], Decoding(length=5))
    first = whole.ids.index(whole.ids[1])
    assert short.steps == first + 1
    assert short.ids == whole.ids[: first + 1]


def test_placeholders_that_are_also_padding_are_part_of_an_answer():
    m = loaded("radd rope")
    with torch.no_grad():
        m.model.lm_head.weight.zero_()
        m.model.lm_head.bias[:] = 0
        m.model.lm_head.bias[0] = 5  # the placeholder, whatever is asked
    (answer,) = decode(m, [queries_of(m)[0]])
    assert answer.text == "00000"


def test_a_length_beyond_the_model_is_refused():
    m = loaded("gpt2-mini")
    with pytest.raises(UsageError, match=r"length 500 needs \d+ positions, the model holds"):
        decode(m, queries_of(m, FACTS[:1]), Decoding(length=500))


@pytest.mark.parametrize("name", ["gpt2-mini", "radd rope"])
def test_an_answer_may_end_where_the_model_ends(name):
    """A causal model writes one token beyond what it reads; a masked one reads all that it writes."""
    m = loaded(name)
    query = queries_of(m, LONG[:1])[0]
    first = query.row + m.adapter.shift
    room = m.max_length - first + (name == "gpt2-mini")
    (answer,) = decode(m, [query], Decoding(length=room))
    assert len(answer.ids) == room
    with pytest.raises(UsageError, match=f"needs {m.max_length + 1} positions"):
        decode(m, [query], Decoding(length=room + 1))


@pytest.mark.parametrize("how", [{"steps": 0}, {"length": 0}, {"block": 0}, {"temperature": -1.0}])
def test_settings_out_of_range(how):
    with pytest.raises(UsageError, match=next(iter(how))):
        Decoding(**how)


def test_a_decoder_nobody_registered():
    m = loaded("radd rope")
    with pytest.raises(UnknownNameError, match="did you mean 'confidence'"):
        decode(m, queries_of(m), Decoding("confidense"))


# --- in a run ---


def test_written_answers_are_judged_by_every_right_answer(tmp_path):
    m = loaded("radd rope")
    facts = [Fact(a, a.upper(), "{a}00{b}", "{b}0{a}", a_answers=tuple(ALPHABET[1:])) for a in "abc"]
    seen = observe(m, rcprobe.encode(m, facts, "swapped"), read={"answers"})
    query = seen.pairs[0].reverse
    assert set(right_answers(query)) == set(ALPHABET[1:])
    report = rcprobe.run(
        m, facts, metrics=["answers"], decoding=Decoding(steps=1), out=tmp_path / "run", progress=False
    )
    frame = report.frame("answers")
    assert (frame["reverse, exact"] == [float(seen.answers[i][1].text in ALPHABET[1:]) for i in range(3)]).all()
    assert (frame["reverse, steps"] == 1).all()
    assert report.info["decoding"] == {
        "decoder": "confidence",
        "steps": 1,
        "temperature": 0.0,
        "length": None,
        "block": None,
        "seed": 0,
    }
    assert "answers" not in [metric.name for metric in rcprobe.Probe(m, facts).metrics]


def test_a_configuration_says_how_answers_are_written(tmp_path):
    (tmp_path / "run.toml").write_text(
        'model = "radd"\ndataset = "letters"\n[decoding]\ndecoder = "margin"\nsteps = 2\n'
    )
    assert read_config(tmp_path / "run.toml").answering() == Decoding("margin", steps=2)
    (tmp_path / "run.toml").write_text('model = "radd"\ndataset = "letters"\n[decoding]\nstep = 2\n')
    with pytest.raises(UsageError, match="steps"):
        read_config(tmp_path / "run.toml")
