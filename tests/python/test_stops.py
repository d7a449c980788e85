"""Stop strings: found wherever the text is split, and nothing given out that belongs to one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgewise.stops import StopStrings

TEXTS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, looked for at the end of every beginning."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


def feed(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    matcher = StopStrings(stops)
    given_out = [matcher.push(piece) for piece in pieces]
    return [*given_out, matcher.flush()], matcher.matched


@given(TEXTS, STOPS, st.data())
def test_any_split_gives_the_same_text_and_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    given_out, matched = feed(pieces, stops)
    assert ("".join(given_out), matched) == naive(text, stops)


@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_could_be_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopStrings(stops)
    seen = ""
    for index, character in enumerate(text):
        seen += matcher.push(character)
        if matcher.matched is not None:
            return
        held = text[len(seen) : index + 1]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_text_after_the_stop_is_dropped() -> None:
    assert feed(["one END two", " three"], ["END"]) == (["one ", "", ""], "END")


def test_a_stop_over_three_pieces() -> None:
    assert feed(["Yes", ".\n", "Us", "er: No"], ["\nUser:"]) == (["Yes", ".", "", "", ""], "\nUser:")


def test_held_text_is_given_out_when_it_is_no_stop_after_all() -> None:
    assert feed(["a\nU", "nder"], ["\nUser:"]) == (["a", "\nUnder", ""], None)


def test_held_text_is_given_out_at_the_end() -> None:
    assert feed(["a\nUs"], ["\nUser:"]) == (["a", "\nUs"], None)
