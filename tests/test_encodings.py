import math
from pathlib import Path

import pytest
import torch

from rcprobe import load
from rcprobe.encoding import DECLARED, Encoding, encoding_options, misdeclared
from rcprobe.errors import AdapterError, OptionError, PluginError, VerificationError
from rcprobe.plugins import registry
from rcprobe_plugins.encodings.absolute import Absolute
from rcprobe_plugins.encodings.alibi import Alibi
from rcprobe_plugins.encodings.rope import Rope
from rcprobe_plugins.encodings.sinusoidal import Sinusoidal
from rcprobe_plugins.encodings.t5 import T5, buckets


def states(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Plane m of a head as the complex number x_m + i·x_{m+D/2}, times exp(i·position·base^(−2m/D))."""
    half = x.shape[-1] // 2
    theta = torch.tensor([10_000.0 ** (-2 * m / x.shape[-1]) for m in range(half)], dtype=torch.float64)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * theta
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), dim=-1)


@pytest.mark.parametrize(("name", "kind"), [("rope", Rope), ("alibi", Alibi), ("absolute", Absolute)])
def test_names_stand_for_the_classes(name, kind):
    assert registry().get("encodings", name) is kind


def test_rope_turns_each_plane_by_its_angle():
    query, key = states(2, 3, 7, 8)
    q, k = Rope(24, 3, 16).rotate(query, key)
    torch.testing.assert_close(q, turned(query), rtol=0, atol=1e-14)
    torch.testing.assert_close(k, turned(key), rtol=0, atol=1e-14)


def test_rope_scores_see_the_signed_distance_only():
    query, key = states(1, 1, 1, 8)
    q, k = Rope(8, 1, 16).rotate(query.expand(1, 1, 9, 8), key.expand(1, 1, 9, 8))
    scores = (q @ k.transpose(-1, -2))[0, 0]
    for offset in range(-8, 9):
        assert torch.diagonal(scores, offset).std(correction=0) < 1e-14
    assert (scores - scores.T).abs().max() > 0.1


def test_rope_keeps_the_callers_dtype_and_computes_angles_in_float32():
    query, key = states(1, 1, 300, 8)
    rope = Rope(8, 1, 512)
    for low in (torch.bfloat16, torch.float16):
        q, _ = rope.rotate(query.to(low), key.to(low))
        assert q.dtype == low
        torch.testing.assert_close(q.double(), turned(query), rtol=0, atol=0.1)


def test_rope_names_the_odd_head_width():
    with pytest.raises(AdapterError, match=r"even; it is 5 \(width 15 over 3 heads\)"):
        Rope(15, 3, 8)


@pytest.mark.parametrize(("heads", "slopes"), [(1, [2**-8]), (2, [2**-4, 2**-8]), (8, [2**-h for h in range(1, 9)])])
def test_alibi_is_minus_slope_times_distance(heads, slopes):
    bias = Alibi(16, heads, 8).bias(5)
    assert bias.shape == (1, heads, 5, 5)
    assert bias.dtype == torch.float64
    for h, slope in enumerate(slopes):
        for i in range(5):
            for j in range(5):
                assert bias[0, h, i, j] == -slope * abs(i - j)


def test_encodings_leave_the_rest_alone():
    query, key = states(1, 1, 4, 8)
    x = query[0]
    for encoding in (Rope(8, 1, 8), Alibi(8, 1, 8)):
        assert encoding.embed(x) is x
    for encoding in (Alibi(8, 1, 8), Absolute(8, 1, 8)):
        assert encoding.rotate(query, key) == (query, key)
    for encoding in (Rope(8, 1, 8), Absolute(8, 1, 8)):
        assert encoding.bias(4) is None


def test_absolute_adds_its_rows_and_starts_small():
    torch.manual_seed(0)
    encoding = Absolute(64, 1, 128)
    x = torch.randn(3, 7, 64)
    torch.testing.assert_close(encoding.embed(x), x + encoding.position.weight[:7], rtol=0, atol=0)
    assert encoding.position.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_absolute_looks_positions_up_for_each_prompt():
    encoding = Absolute(4, 1, 8)
    seen = []
    encoding.position.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    encoding.embed(torch.zeros(3, 5, 4))
    ids, output = seen[0]
    assert ids.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert output.shape == (3, 5, 4)  # one row a prompt, so that each prompt has its own gradient


def test_absolute_names_the_length_it_cannot_hold():
    with pytest.raises(AdapterError, match=r"9 tokens .* 8 rows; build the model with max_length=9"):
        Absolute(4, 1, 8).embed(torch.zeros(1, 9, 4))


def built(name, width=8, heads=2, length=8, **options):
    torch.manual_seed(0)
    return registry().get("encodings", name)(width, heads, length, **options)


@pytest.mark.parametrize("name", registry().names("encodings"))
@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_what_an_encoding_declares_is_what_it_does(name, length):
    assert misdeclared(built(name), 8, 2, length if name != "absolute" else min(length, 8)) == ""


def test_identities_are_declared_by_those_that_have_them():
    kinds = {name: registry().get("encodings", name) for name in registry().names("encodings")}
    assert {name for name, kind in kinds.items() if kind.reads_distance_only} == {"alibi", "nope"}
    placed = {"absolute", "sinusoidal", "turned-values"}
    assert {name for name, kind in kinds.items() if kind.values_carry_position} == placed


@pytest.mark.parametrize("name", registry().names("encodings"))
@pytest.mark.parametrize("declaration", DECLARED)
def test_a_false_declaration_is_found_and_named(name, declaration):
    encoding = built(name)
    false = not getattr(encoding, declaration)
    setattr(encoding, declaration, false)
    assert f"declares {declaration} = {false}" in misdeclared(encoding, 8, 2, 8)


def test_a_side_that_only_training_brings_out_is_found():
    encoding = built("t5")
    with torch.no_grad():
        encoding.table.weight.zero_()
    encoding.reads_distance_only = True
    assert "does not give the mirrored output" in misdeclared(encoding, 8, 2, 8)
    assert encoding.table.weight.abs().max() == 0  # it was a copy that was moved


def test_trying_an_encoding_draws_no_random_numbers():
    encoding = built("absolute")
    before = torch.get_rng_state()
    misdeclared(encoding, 8, 2, 8)
    assert torch.equal(torch.get_rng_state(), before)


class Whole(Encoding):
    reads_distance_only, values_carry_position = True, False


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"values_carry_position": None}, "lacks a declaration: set values_carry_position"),
        ({"reads_distance_only": "yes"}, "lacks a declaration: set reads_distance_only"),
        ({"__init__": lambda self, width: None}, "must take width, heads, max_length first"),
        ({"__init__": lambda self, width, heads, max_length, tilt: None}, "option 'tilt' needs a default"),
    ],
)
def test_an_encoding_that_lacks_part_of_the_contract_is_named(members, named):
    with pytest.raises(PluginError, match=f"encoding 'mine'.*{named}"):
        encoding_options("mine", type("Mine", (Whole,), members))


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"embed": lambda self, x: x[..., :1]}, "embed gives shape"),
        ({"bias": lambda self, length: torch.zeros(length, length)}, "bias gives shape"),
        ({"place": lambda self, value: value[:, :1]}, "place gives shape"),
    ],
)
def test_a_method_of_another_shape_is_named(members, named):
    assert named in misdeclared(type("Mine", (Whole,), members)(8, 2, 8), 8, 2, 8)


@pytest.mark.parametrize("method", ["place", "read"])
def test_values_that_are_not_read_linearly_are_refused(method):
    single = type("Mine", (Whole,), {method: lambda self, x: (x.float() * 0.3).to(x.dtype)})
    assert misdeclared(single(8, 2, 8), 8, 2, 8) == ""
    for crooked in (torch.tanh, lambda x: x + 1):
        members = {method: lambda self, x, crooked=crooked: crooked(x)}
        named = f"{method} isn't linear; the contract wants it linear in the values"
        assert misdeclared(type("Mine", (Whole,), members)(8, 2, 8), 8, 2, 8) == named


def test_loading_refuses_a_misdeclared_encoding(monkeypatch):
    monkeypatch.setattr(T5, "reads_distance_only", True)
    with pytest.raises(VerificationError, match="encoding: T5: it declares reads_distance_only = True, but"):
        load("radd", options={"encoding": "t5", "width": 8})
    monkeypatch.delattr(Encoding, "reads_distance_only", raising=False)
    monkeypatch.delattr(T5, "reads_distance_only")
    with pytest.raises(PluginError, match="encoding 't5' lacks a declaration"):
        load("radd", options={"encoding": "t5", "width": 8})


def test_options_reach_the_encoding_from_load_and_from_a_file(tmp_path):
    m = load("radd", options={"encoding": "alibi", "slope": 0.5, "width": 8})
    assert m.model.encoding.bias(3)[0, 0, 0].tolist() == [0.0, -0.5, -1.0]
    m.model.save_pretrained(tmp_path)
    assert load(tmp_path, tokenizer=m.tokenizer).model.encoding.slope == 0.5
    with pytest.raises(OptionError, match="encoding rope: unknown option 'slope'"):
        load("radd", options={"encoding": "rope", "slope": 0.5})
    for wrong in (-1.0, float("nan")):
        with pytest.raises(OptionError, match="slope must be a number"):
            load("radd", options={"encoding": "alibi", "slope": wrong})
    with pytest.raises(OptionError, match="base must be"):
        load("radd", options={"encoding": "turned-values", "base": 0.5})
    with pytest.raises(OptionError, match="turned-values turns pairs"):
        load("radd", options={"encoding": "turned-values", "width": 9, "heads": 3})


def test_sinusoidal_adds_the_published_table_in_the_published_proportion():
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    want = x.clone()
    for i in range(5):
        for m in range(3):
            angle = i / 10_000 ** (2 * m / 6)
            want[:, i, 2 * m] += math.sin(angle) / math.sqrt(6)
            want[:, i, 2 * m + 1] += math.cos(angle) / math.sqrt(6)
    torch.testing.assert_close(Sinusoidal(6, 1, 8).embed(x), want, rtol=0, atol=1e-13)
    assert Sinusoidal(5, 1, 8).embed(torch.randn(1, 4, 5)).shape == (1, 4, 5)


def test_t5_buckets_are_those_of_the_published_formula():
    """16 a side: one for each of 0–7, then 8 of growing width up to 128 (Raffel et al., 2020)."""
    offsets = torch.arange(-200, 201)
    found = dict(zip(offsets.tolist(), buckets(offsets).tolist(), strict=True))
    for offset, bucket in found.items():
        distance = abs(offset)
        side = 16 if offset > 0 else 0
        far = 8 + int(math.log(max(distance, 1) / 8) / math.log(16) * 8)
        assert bucket == side + (distance if distance < 8 else min(far, 15))
    assert found[-9] == 8
    assert found[9] == 24
    assert found[200] == 31


def test_t5_adds_its_tables_entry_to_each_score():
    encoding = built("t5")
    bias = encoding.bias(4)
    assert bias.shape == (1, 2, 4, 4)
    assert bias[0, 1, 3, 1] == encoding.table.weight[2, 1]
    assert bias[0, 1, 1, 3] == encoding.table.weight[18, 1]


def test_turned_values_turn_by_the_offset_and_score_as_alibi():
    encoding = built("turned-values", base=3.0)
    torch.testing.assert_close(encoding.bias(6), Alibi(8, 2, 8).bias(6), rtol=0, atol=0)
    value, _ = states(1, 2, 6, 4)
    placed = encoding.place(value)
    for i in range(6):
        for j in range(6):
            read = encoding.read(placed[:, :, j : j + 1].expand_as(placed))[:, :, i]
            theta = torch.tensor([1.0, 3.0**-0.5], dtype=torch.float64) * (j - i)
            z = torch.complex(value[:, :, j, :2], value[:, :, j, 2:]) * torch.polar(torch.ones_like(theta), theta)
            torch.testing.assert_close(read, torch.cat((z.real, z.imag), -1), rtol=0, atol=1e-13)


def test_the_guides_encoding_keeps_the_contract():
    guide = (Path(__file__).parents[1] / "docs" / "add-an-encoding.md").read_text(encoding="utf-8")
    code = guide.split("```python")[1].split("```")[0]
    names = {}
    exec(code, names)
    kind = names["LearnedSlopes"]
    assert encoding_options("learned-slopes", kind) == {"slope": 0.1}
    encoding = kind(8, 2, 8)
    assert misdeclared(encoding, 8, 2, 8) == ""
    assert encoding.bias(3)[0, 0].tolist() == Alibi(8, 2, 8, slope=0.1).bias(3)[0, 0].float().tolist()
