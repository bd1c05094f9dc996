from pathlib import Path

import pytest
import torch

import rcprobe
from rcprobe.controls import assign
from rcprobe.errors import CaptureError, UsageError
from rcprobe.probing import engine, gradients, sizes
from rcprobe.probing.sizes import bytes_a_token, resolve, worked_through

FACTS = rcprobe.load_dataset("letters", {"length": 4}).facts[:8]


@pytest.fixture(scope="module")
def model():
    m = rcprobe.load("radd", options={"width": 8, "max_length": 8})
    with torch.no_grad():
        m.model.lm_head.weight.normal_()
    return m


class Cramped:
    """Memory that holds so many prompts, and fails as torch does on each device."""

    def __init__(self, capture, most, error):
        self.capture, self.most, self.error, self.sizes = capture, most, error, []

    def __call__(self, m, batch, **asked):
        self.sizes.append(len(batch.rows))
        if len(batch.rows) > self.most:
            raise self.error
        return self.capture(m, batch, **asked)


GPU = torch.OutOfMemoryError("CUDA out of memory")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")


def test_the_size_follows_from_free_memory(model, monkeypatch):
    def fitting(free, length=8, gradients=True):
        monkeypatch.setattr(sizes, "free_memory", lambda device: free)
        return resolve(model, "auto", length, gradients=gradients)

    prompt = 8 * bytes_a_token(model, True)
    assert fitting(0) == 1
    assert fitting(20 * prompt) == 10
    assert fitting(20 * prompt, length=16) == 5
    assert fitting(20 * prompt, gradients=False) > 10
    assert fitting(10**15) == 256
    assert resolve(model, 7, 8, gradients=True) == 7


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says what is available")
def test_memory_that_caches_hold_can_be_had():
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
    found = sizes.free_memory(torch.device("cpu"))
    assert found == pytest.approx(int(available.split()[1]) * 1024, rel=0.5)


def test_a_size_below_one_is_refused(model):
    with pytest.raises(UsageError, match="batch_size is 0"):
        rcprobe.observe(model, rcprobe.encode(model, FACTS), batch_size=0)


@pytest.mark.parametrize("error", [GPU, CPU], ids=["gpu", "cpu"])
def test_where_memory_runs_out_the_same_queries_are_tried_in_halves(model, monkeypatch, error):
    pairs = rcprobe.encode(model, FACTS)
    ample = rcprobe.observe(model, pairs)
    assert ample.batch_size == 256
    cramped = Cramped(engine.capture, 9, error)
    monkeypatch.setattr(engine, "capture", cramped)
    seen = rcprobe.observe(model, pairs, batch_size=32)
    assert cramped.sizes[:3] == [32, 16, 8]
    assert seen.batch_size == 8
    torch.testing.assert_close(seen.log_probs, ample.log_probs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen.scores, ample.scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("error", [GPU, CPU], ids=["gpu", "cpu"])
def test_gradients_survive_a_lack_of_memory_with_their_controls(model, monkeypatch, error):
    pairs = rcprobe.encode(model, FACTS)
    ample = rcprobe.observe(model, pairs, read={"gradients", "scores", "log_probs"})
    block = max(map(len, assign(pairs, 8).blocks))
    cramped = Cramped(gradients.capture, block, error)
    monkeypatch.setattr(gradients, "capture", cramped)
    seen = rcprobe.observe(model, pairs, read={"gradients", "scores", "log_probs"})
    assert max(cramped.sizes) > block
    assert seen.batch_size < max(cramped.sizes)
    for name in ("inner", "reverse_norm2", "control_inner", "control_norm2"):
        got, want = getattr(seen.gradients, name), getattr(ample.gradients, name)
        scale = (ample.gradients.forward_norm2 * ample.gradients.reverse_norm2).sqrt().nan_to_num().max()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 * float(scale), equal_nan=True)
    assert torch.equal(seen.gradients.partner, ample.gradients.partner)
    torch.testing.assert_close(seen.log_probs, ample.log_probs, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_at_all_is_an_error_with_a_way_out(model, monkeypatch):
    monkeypatch.setattr(engine, "capture", Cramped(engine.capture, 0, CPU))
    with pytest.raises(CaptureError, match=r"memory ran out with 1 prompts at once.*shorter prompts"):
        rcprobe.observe(model, rcprobe.encode(model, FACTS))


def test_other_errors_are_not_taken_for_a_lack_of_memory(model, monkeypatch):
    monkeypatch.setattr(engine, "capture", Cramped(engine.capture, 0, RuntimeError("shapes don't match")))
    with pytest.raises(RuntimeError, match="shapes don't match"):
        rcprobe.observe(model, rcprobe.encode(model, FACTS))


def test_items_keep_their_order_and_their_weight():
    def weigh(item):
        return item

    found = [(group, size) for group, _, size in worked_through([2, 2, 9, 1, 1, 1], 4, weigh, sum)]
    assert found == [([2, 2], 4), ([9], 4), ([1, 1, 1], 4)]
