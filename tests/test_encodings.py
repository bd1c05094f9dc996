import pytest
import torch

from rcprobe.errors import AdapterError
from rcprobe.plugins import registry
from rcprobe_plugins.encodings.absolute import Absolute
from rcprobe_plugins.encodings.alibi import Alibi
from rcprobe_plugins.encodings.rope import Rope


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


def test_only_alibi_reads_the_distance_alone():
    assert (Rope.reads_distance_only, Alibi.reads_distance_only, Absolute.reads_distance_only) == (
        False,
        True,
        False,
    )


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
