import io
import sys

import rcprobe
from rcprobe.progress import Display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_of(monkeypatch):
    """Standard error as a terminal; made in the test itself, since pytest changes it after fixtures."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_nothing_is_drawn_into_a_pipe_whatever_colours_are_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Display(True) as display:
        assert display.bar("x") is None
    assert stream.getvalue() == ""


def test_nothing_is_drawn_unwanted(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with Display(False) as display:
        assert display.bar("x") is None
    assert terminal.getvalue() == ""


def test_a_bar_shows_what_is_left_and_is_gone_at_the_end(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with Display(True) as display:
        bar = display.bar("training")
        bar(1, 4)
        display.bars.refresh()
        assert "training" in terminal.getvalue()
        assert "25%" in terminal.getvalue()
        bar(1, 1)
        assert not display.bars.tasks[0].visible
        bar(1, 4)  # the next probe starts anew
        assert display.bars.tasks[0].completed == 1


def test_no_color_leaves_no_colours(monkeypatch):
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with Display(True) as display:
        display.bar("training")(1, 4)
        display.bars.refresh()
    assert "training" in terminal.getvalue()
    assert "\x1b[3" not in terminal.getvalue()


def test_probing_tells_of_each_pass_and_knows_how_many_the_second_time():
    told = []
    m = rcprobe.load("radd", options={"width": 8, "max_length": 4})
    letters = rcprobe.load_dataset("letters", {"length": 3})
    probe = rcprobe.Probe(
        m, letters, ["reverse_probability"], batch_size=10, progress=lambda done, of: told.append((done, of))
    )
    probe.step(0)
    passes = len(told) - 1
    assert [done for done, _ in told[:-1]] == list(range(1, passes + 1))
    assert passes >= 8  # 78 pairs, two queries each, ten at a time
    assert told[-1] == (1, 1)
    told.clear()
    probe.step(1)
    assert told[0] == (1, passes)
    assert not m.model._forward_hooks
