"""`edgewise demo`: what it draws, shows, saves and asks."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgewise.cli import main, picture
from edgewise.demo import drawing

Captured = pytest.CaptureFixture[str]
HALF = "\N{UPPER HALF BLOCK}"


class Terminal(io.TextIOWrapper):
    """A terminal with an encoding of its own."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.seek(0)
        return self.read()


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that has all colours."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


class TestRender:
    def test_pixels_become_colours(self) -> None:
        image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
        assert picture.render([image], 2) == (
            f"\x1b[38;2;0;1;2m\x1b[48;2;6;7;8m{HALF}\x1b[38;2;3;4;5m\x1b[48;2;9;10;11m{HALF}\x1b[0m"
        )

    def test_a_colour_is_named_once(self) -> None:
        line = picture.render([Image.new("RGB", (96, 96), (1, 2, 3))], 4).splitlines()[0]
        assert line == f"\x1b[38;2;1;2;3m\x1b[48;2;1;2;3m{HALF * 4}\x1b[0m"

    @pytest.mark.parametrize(("columns", "lines"), [(40, 20), (19, 10), (1, 1)])
    def test_sizes(self, columns: int, lines: int) -> None:
        rendered = picture.render([Image.new("RGB", (96, 96))] * 3, columns).splitlines()
        assert len(rendered) == lines
        assert {re.sub(r"\x1b\[[\d;]*m", "", line) for line in rendered} == {" ".join([HALF * columns] * 3)}


class TestShownOn:
    def test_a_terminal_with_all_colours(self) -> None:
        assert picture.shown_on(Terminal())

    def test_no_terminal(self) -> None:
        assert not picture.shown_on(io.StringIO())

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_without_the_character(self, encoding: str) -> None:
        assert not picture.shown_on(Terminal(encoding))

    @pytest.mark.parametrize(
        ("name", "value"), [("COLORTERM", ""), ("COLORTERM", "256"), ("NO_COLOR", "1"), ("TERM", "dumb")]
    )
    def test_without_the_colours(self, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, value)
        assert not picture.shown_on(Terminal())


def drawn_and_answered(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^drawn:  (.*)\nanswer: (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_answers_are_true(seed: int, capsys: Captured) -> None:
    assert main(["demo", "--seed", str(seed)]) == 0
    text = capsys.readouterr().out
    pairs = drawn_and_answered(text)
    assert len(pairs) == 2
    for drawn, answered in pairs:
        assert drawn == answered
    assert "\x1b" not in text


def test_seeds_draw_differently(capsys: Captured) -> None:
    drawn = set()
    for arguments in ([], ["--seed", "1"], ["--seed", "2"]):
        assert main(["demo", *arguments]) == 0
        drawn.add(tuple(drawn_and_answered(capsys.readouterr().out)))
    assert len(drawn) == 2


def test_a_terminal_shows_both(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Terminal()
    monkeypatch.setattr("sys.stdout", stdout)
    assert main(["demo"]) == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", stdout.text()).splitlines()
    assert lines.count(HALF * 40) == 20
    assert lines.count(" ".join([HALF * 19] * 4)) == 10


def test_saved(tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert main(["demo", "--save", str(folder)]) == 0
    assert f"saved {folder / 'picture.png'}" in capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in folder.iterdir()) == ["clip.gif", "picture.png"]
    with Image.open(folder / "picture.png") as saved:
        assert saved.size == (drawing.SIDE, drawing.SIDE)
    with Image.open(folder / "clip.gif") as saved:
        assert (getattr(saved, "n_frames", 1), saved.info["duration"]) == (drawing.FRAMES, 500)


def test_saved_files_are_answered_alike(tmp_path: Path, capsys: Captured) -> None:
    """What is saved is what was asked about: the commands for files give the same answers."""
    assert main(["demo", "--save", str(tmp_path)]) == 0
    answers = [answer for _, answer in drawn_and_answered(capsys.readouterr().out)]
    asked = [
        ("--image", "picture.png", "Describe the image."),
        ("--video", "clip.gif", "What happens in the video?"),
    ]
    for (option, name, question), answer in zip(asked, answers, strict=True):
        arguments = ["generate", "demo", question, option, str(tmp_path / name)]
        assert main([*arguments, "--no-think", "--temperature", "0"]) == 0
        assert capsys.readouterr().out.strip() == answer


def test_a_folder_that_cannot_be(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--save", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("edgewise: ")
    assert "file" in error
