"""The progress bar: redrawn on a terminal, quiet elsewhere, and honest about the time."""

from __future__ import annotations

import io
from typing import Any

import pytest

from edgewise.progress import ProgressBar, count, duration, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_terminal_gets_one_line_redrawn(clock: list[float]) -> None:
    out = Terminal()
    bar = ProgressBar("converting", out)
    bar(0, 4_000_000, "embed")
    clock[0] += 0.05
    bar(1, 4_000_000, "too soon to redraw")
    clock[0] += 3.95
    bar(1_000_000, 4_000_000, "layers.0")
    clock[0] += 12
    bar(4_000_000, 4_000_000, "head")
    lines = out.getvalue().split("\r")
    assert [line.rstrip() for line in lines[1:]] == [
        "converting [........................]   0% 0/4 MB ... embed",
        "converting [######..................]  25% 1/4 MB 12 s left layers.0",
        "converting [########################] 100% 4/4 MB in 16 s head",
    ]
    assert out.getvalue().endswith("\n")


def test_a_shorter_line_covers_a_longer_one(clock: list[float]) -> None:
    out = Terminal()
    bar = ProgressBar("x", out)
    bar(0, 10, "a long name")
    clock[0] += 1
    bar(0, 10, "b")
    first, second = out.getvalue().split("\r")[1:]
    assert len(second) == len(first)


def test_a_log_gets_a_line_every_ten_seconds(clock: list[float]) -> None:
    out = io.StringIO()
    bar = ProgressBar("converting", out)
    for _ in range(25):
        bar(1, 2, "layer")
        clock[0] += 1
    assert out.getvalue().count("\n") == 2
    assert "\r" not in out.getvalue()


@pytest.mark.usefixtures("clock")
def test_short_work_leaves_no_trace_in_a_log() -> None:
    out = io.StringIO()
    bar = ProgressBar("converting", out)
    bar(1, 1, "all")
    bar.close()
    assert out.getvalue() == ""


@pytest.mark.usefixtures("clock")
def test_work_that_breaks_off_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)

    def work() -> None:
        with shown(True, "opening") as report:
            assert report is not None
            report(1, 2, "a")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        work()
    assert out.getvalue().endswith("\n")


def test_a_callers_own_function_is_used_as_it_is() -> None:
    calls: list[tuple[int, int, str]] = []

    def own(*report: Any) -> None:
        calls.append(report)

    with shown(own, "opening") as report:
        assert report is own
        report(1, 2, "a")
    assert calls == [(1, 2, "a")]
    for nothing in (None, False):
        with shown(nothing, "opening") as report:
            assert report is None


@pytest.mark.usefixtures("clock")
def test_nothing_to_do_is_done() -> None:
    out = Terminal()
    ProgressBar("x", out)(0, 0, "")
    assert "100%" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (59.9, "1:00 min"),
        (185, "3:05 min"),
        (3725, "1:02 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_other_amounts_than_bytes(clock: list[float]) -> None:
    out = Terminal()
    bar = ProgressBar("looking", out, count("tokens"))
    clock[0] += 2
    bar(64, 256, "images[0]")
    assert out.getvalue() == "\rlooking [######..................]  25% 64/256 tokens 6.0 s left images[0]"


@pytest.mark.parametrize(("seconds", "drawn"), [(0.4, False), (0.6, True)])
def test_work_that_is_done_before_the_delay_shows_nothing(
    clock: list[float], seconds: float, drawn: bool
) -> None:
    out = Terminal()
    bar = ProgressBar("looking", out, delay=0.5)
    bar(0, 2, "a")
    clock[0] += seconds
    bar(1, 2, "a")
    bar(2, 2, "a")
    bar.close()
    assert ("100%" in out.getvalue()) == drawn
    assert (out.getvalue() == "") == (not drawn)
