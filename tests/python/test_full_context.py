"""A full context: what is dropped, and that what follows is as if it had never been there."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgewise import ContextError, Model, Prompt, Result
from edgewise.checkpoints import Markers
from edgewise.window import dropped, without

CHAT = Markers(message=1, thought=2, system=(1, 3), user=(1, 4), tool_response=5)
"""Messages of these tests begin with 1 and a role: 3 system, 4 user, 6 assistant."""


def message(role: int, words: int) -> list[int]:
    return [1, role, *[9] * (words - 2)]


def cut(ids: list[int], most: int, keep_first: int | None = None, answer: int | None = None) -> Any:
    ranges = dropped(Prompt(ids), CHAT, keep_first, most, answer)
    assert len(without(Prompt(ids), ranges)) <= most
    return ranges


class TestWhatIsDropped:
    TURNS = (*message(3, 10), *message(4, 10), *message(6, 10), *message(4, 10), *message(6, 10),
             *message(4, 10), *message(6, 3))  # fmt: skip
    """System, three turns of 20 tokens, the last one with the beginning of an answer."""

    def test_oldest_turns_first(self) -> None:
        ids = list(self.TURNS)
        assert len(ids) == 63
        assert cut(ids, 62) == [(10, 50)], "half of the room for turns: 26 tokens"
        assert cut(ids, 43) == [(10, 50)]
        assert cut(ids, 23) == [(10, 50)]

    def test_first_messages(self) -> None:
        ids = list(self.TURNS)
        assert cut(ids, 62, keep_first=0) == [(0, 50)]
        assert cut(ids, 60, keep_first=3) == [(30, 50)]
        assert cut(ids[10:], 50) == [(0, 40)], "there is no system's message"
        with pytest.raises(ContextError, match=r"^context is full: the 63 tokens that a shift always keeps"):
            cut(ids, 62, keep_first=9)

    def test_a_question_too_long(self) -> None:
        with pytest.raises(ContextError, match=r"the 23 tokens that a shift always keeps .* within 22"):
            cut(list(self.TURNS), 22)

    def test_calls_of_tools_after_the_last_question(self) -> None:
        call = [*message(6, 8), 1, 4, 8, 5, *[9] * 6]
        ids = [*message(3, 10), *message(4, 12), *call * 4, *message(6, 3)]
        assert cut(ids, 96) == [(22, 76)]
        assert cut(ids, 25) == [(22, 94)]

    def test_the_oldest_part_of_an_answer(self) -> None:
        ids = [*self.TURNS, *[8] * 37]
        assert cut(ids, 99, answer=63) == [(10, 50)], "turns are enough"
        ids += [8] * 100
        assert cut(ids, 199, answer=63) == [(10, 50), (63, 200 - 88)]

    def test_text(self) -> None:
        assert cut([9] * 100, 99) == [(0, 49)]
        assert cut([9] * 100, 99, keep_first=20) == [(20, 59)]
        with pytest.raises(ContextError, match="the 99 tokens"):
            cut([9] * 100, 99, keep_first=99)

    def test_a_picture_goes_whole_or_stays(self) -> None:
        picture = Image.new("RGB", (96, 96), "red")
        text = "Look: <|vision_start|><|image_pad|><|vision_end|> and so on. " * 8
        prompt = cold().prepare(text, images=[picture] * 8, raw=True)
        pad = prompt.token_ids[prompt.media[0].starts[0]]
        left = set()
        for most in range(40, len(prompt)):
            kept = without(prompt, dropped(prompt, CHAT, most % 30, most))
            assert len(kept) <= most
            assert kept.token_ids.count(pad) == 9 * len(kept.media)
            for medium in kept.media:
                (start,) = medium.starts
                assert kept.token_ids[start : start + 9] == [pad] * 9
            left.add(len(kept.media))
        assert len(left) > 3

    def test_a_conversation_is_shortened_at_the_same_place_for_many_turns(self) -> None:
        ids, places = message(3, 20), []
        while len(ids) < 3000:
            ids += [*message(4, 10), *message(6, 10)]
            if len(ids) > 400:
                ((_, place),) = cut(ids, 400)
                places.append(place)
        assert len(places) == 130
        assert len(set(places)) <= 15

    @given(
        st.lists(st.tuples(st.sampled_from([3, 4, 6]), st.integers(2, 30)), min_size=1, max_size=20),
        st.integers(1, 300),
        st.one_of(st.none(), st.integers(0, 30)),
        st.integers(0, 50),
    )
    def test_anything(
        self, messages: list[tuple[int, int]], most: int, keep_first: int | None, written: int
    ) -> None:
        ids = [token_id for role, words in messages for token_id in message(role, words)]
        for answer in (None, len(ids)):
            text = ids if answer is None else [*ids, *[8] * written]
            if len(text) <= most:
                continue
            try:
                ranges = cut(text, most, keep_first, answer)
            except ContextError:
                continue
            ends = [place for span in ranges for place in span]
            assert ends == sorted(ends)
            assert all(start < end for start, end in ranges)
            assert len(without(Prompt(text), ranges)) > 0


SOURCE = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
CONTEXT = 300


@cache
def folder() -> Path:
    """The demo's checkpoint with a short context."""
    target = Path(tempfile.mkdtemp(prefix="edgewise-context-"))
    atexit.register(shutil.rmtree, target)
    for file in SOURCE.iterdir():
        (target / file.name).symlink_to(file)
    config = json.loads((SOURCE / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config))
    return target


def opened(cache_bytes: int) -> Model:
    return Model.from_pretrained(folder(), dtype="int4", threads=2, cache_bytes=cache_bytes)


@cache
def cold() -> Model:
    return opened(0)


@pytest.fixture(params=[0, 1 << 26], ids=["no cache", "cache"])
def model(request: pytest.FixtureRequest) -> Model:
    return opened(request.param)


def conversation(turns: int, length: int = 6) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for turn in range(turns):
        words = " ".join(f"word{(turn * 7 + i) % 50}" for i in range(length))
        messages.append({"role": "user", "content": f"Repeat: {words}"})
        messages.append({"role": "assistant", "content": words})
    return messages[:-1]


GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "logprobs": 0}


def bits(result: Result) -> list[tuple[int, float]]:
    assert result.logprobs is not None
    return [(entry.token_id, entry.logprob) for entry in result.logprobs]


class TestPrompts:
    def test_an_error_without_it(self) -> None:
        with pytest.raises(ContextError, match=rf"^context is full: \d+ tokens .* the limit is {CONTEXT}$"):
            cold().generate(conversation(20))

    def test_it_is_the_conversation_without_its_middle(self, model: Model) -> None:
        messages = conversation(20)
        result = model.generate(messages, on_full="shift", max_new_tokens=20, **GREEDY)
        (shift,) = result.shifts
        assert shift.generated == 0
        assert shift.dropped_messages % 2 == 0
        shorter = [messages[0], *messages[1 + shift.dropped_messages :]]
        wanted = cold().generate(shorter, max_new_tokens=20, **GREEDY)
        assert result.prompt_token_ids == wanted.prompt_token_ids
        assert bits(result) == bits(wanted)
        whole = model.prepare(messages)
        assert len(whole) - shift.dropped_tokens == result.usage.prompt_tokens <= CONTEXT - 20
        assert json.loads(json.dumps(result.to_dict()))["shifts"] == [dict(shift)]

    def test_nothing_is_dropped_if_all_fits(self, model: Model) -> None:
        result = model.generate(conversation(2), on_full="shift", max_new_tokens=20, **GREEDY)
        assert result.shifts == []
        assert bits(result) == bits(cold().generate(conversation(2), max_new_tokens=20, **GREEDY))

    def test_the_next_turns_find_it_in_the_cache(self) -> None:
        model = opened(1 << 26)
        cached = []
        for turns in range(20, 48):
            result = model.generate(
                conversation(turns, 1), on_full="shift", max_new_tokens=4, enable_thinking=False
            )
            share = result.usage.cached_tokens / result.usage.prompt_tokens
            cached.append(share > 0.5)
        assert sum(cached) > 18, cached

    def test_pictures_go_with_their_messages(self, model: Model) -> None:
        messages = conversation(20)
        for turn in (3, 35):
            picture = Image.new("RGB", (96, 96), "red" if turn == 3 else "blue")
            messages[turn]["content"] = [
                {"type": "image", "image": picture},
                {"type": "text", "text": "What?"},
            ]
        result = model.generate(messages, on_full="shift", max_new_tokens=8, **GREEDY)
        dropped = result.shifts[0].dropped_messages
        assert 3 < dropped < 35
        wanted = cold().generate([messages[0], *messages[1 + dropped :]], max_new_tokens=8, **GREEDY)
        assert bits(result) == bits(wanted)

    def test_what_is_always_kept_is_too_long(self) -> None:
        question = [{"role": "user", "content": "Repeat: " + "apples " * CONTEXT}]
        with pytest.raises(ContextError, match="that a shift always keeps"):
            cold().generate(question, on_full="shift")

    @pytest.mark.parametrize("wrong", [{"on_full": "slide"}, {"on_full": True}, {"keep_first": -1}])
    def test_wrong_arguments(self, wrong: dict[str, Any]) -> None:
        (name,) = wrong
        with pytest.raises(ValueError, match=f"^{name}: "):
            cold().generate("Hello!", **wrong)
        with pytest.raises(ValueError, match=f"^{name}: "):
            cold().sequence().append([1], **wrong)


class TestAnswers:
    """The context is full in the middle of an answer."""

    def follow(self, prompt: list[int], result: Result, ranges: list[list[tuple[int, int]]]) -> None:
        """Compare what was written after each shift with a fresh run on what was left."""
        text, done = Prompt([*prompt]), 0
        for shift, gone in zip(result.shifts, ranges, strict=True):
            *read, last = result.token_ids[done : shift.generated]
            text = without(Prompt([*text.token_ids, *read]), gone)
            text, done = Prompt([*text.token_ids, last]), shift.generated
            assert shift.dropped_tokens == sum(end - start for start, end in gone)
            rest = cold().generate(text, max_new_tokens=5, **GREEDY)
            assert bits(rest) == bits(result)[done : done + 5]

    def test_of_a_text(self, model: Model) -> None:
        prompt = [(i * 31 + 7) % 500 for i in range(100)]
        result = model.generate(prompt, on_full="shift", keep_first=10, max_new_tokens=600, **GREEDY)
        assert len(result.token_ids) == 600
        assert [shift.generated for shift in result.shifts] == [201, 345, 489]
        self.follow(prompt, result, [[(10, 154)]] * 3)

    def test_of_a_conversation(self, model: Model) -> None:
        messages = conversation(3)
        result = model.generate(messages, on_full="shift", max_new_tokens=600, **GREEDY)
        prompt = model.prepare(messages).token_ids
        questions = [i for i, token_id in enumerate(prompt) if token_id == prompt[0]][1::2]
        system, last = questions[0], questions[-1]
        short = len(prompt) - (last - system)
        newest = -(-(CONTEXT - 1 - short) // 2)
        first = [(system, last)]
        later = [(short, CONTEXT - newest)]
        assert len(result.shifts) > 1
        self.follow(prompt, result, [first, *[later] * (len(result.shifts) - 1)])
        assert [shift.dropped_messages for shift in result.shifts[:2]] == [4, 0]

    def test_a_stream_tells_at_its_end(self, model: Model) -> None:
        prompt = [(i * 31 + 7) % 500 for i in range(100)]
        options: dict[str, Any] = {"on_full": "shift", "max_new_tokens": 250, **GREEDY}
        *pieces, last = model.stream(prompt, **options)
        assert all(piece.shifts is None for piece in pieces)
        assert last.shifts is not None
        assert [dict(shift) for shift in last.shifts] == [
            {"generated": 201, "dropped_tokens": 149, "dropped_messages": 0}
        ]


class TestSequences:
    def test_generating(self, model: Model) -> None:
        ids = [(i * 31 + 7) % 500 for i in range(250)]
        sequence = model.sequence()
        sequence.append(ids)
        with pytest.raises(ContextError, match="context is full"):
            sequence.generate(max_new_tokens=60)
        result = sequence.generate(max_new_tokens=60, on_full="shift", **GREEDY)
        (shift,) = result.shifts
        assert (shift.generated, shift.dropped_tokens) == (0, 120)
        wanted = cold().generate(ids[120:], max_new_tokens=60, **GREEDY)
        assert bits(result) == bits(wanted)
        assert sequence.token_ids == [*ids[120:], *result.token_ids]

        more = sequence.generate(max_new_tokens=200, on_full="shift", **GREEDY)
        assert len(more.shifts) == 1 + (more.shifts[0].generated == 0)
        fresh = cold().sequence()
        fresh.append(sequence.token_ids)
        np.testing.assert_array_equal(sequence.logits(), fresh.logits())
        assert len(sequence) <= CONTEXT

    def test_appending(self, model: Model) -> None:
        ids = [(i * 31 + 7) % 500 for i in range(290)]
        sequence = model.sequence()
        sequence.append(ids)
        with pytest.raises(ContextError, match="context is full: 302 tokens"):
            sequence.append(ids[:12])
        sequence.append(ids[:12], on_full="shift", keep_first=25)
        assert sequence.token_ids == [*ids[:25], *ids[125:], *ids[:12]]
        fresh = cold().sequence()
        fresh.append(sequence.token_ids)
        np.testing.assert_array_equal(sequence.logits(), fresh.logits())

    def test_an_error_leaves_it_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sequence = opened(0).sequence()
        ids = list(range(290))
        sequence.append(ids)
        before = sequence.logits()
        with monkeypatch.context() as patch:
            patch.setattr("edgewise.reading.Text._read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                sequence.append(ids[:20], on_full="shift")
        assert sequence.token_ids == ids
        np.testing.assert_array_equal(sequence.logits(), before)

    def test_cancelled_during_a_shift(self, model: Model) -> None:
        ids = [(i * 31 + 7) % 500 for i in range(200)]
        sequence = model.sequence()
        sequence.append(ids)

        class WhenFull:
            def is_set(self) -> bool:
                return len(sequence) == CONTEXT

        result = sequence.generate(max_new_tokens=200, on_full="shift", cancel=WhenFull(), **GREEDY)
        assert (result.finish_reason, result.shifts) == ("cancelled", [])
        assert sequence.token_ids == [*ids, *result.token_ids]
        assert len(sequence) == CONTEXT
        fresh = cold().sequence()
        fresh.append(sequence.token_ids)
        np.testing.assert_array_equal(sequence.logits(), fresh.logits())


def test_many_at_once(model: Model) -> None:
    prompts = [[(i * 31 + seed) % 500 for i in range(90 + 20 * seed)] for seed in range(4)]
    options: dict[str, Any] = {"on_full": "shift", "max_new_tokens": 250, **GREEDY}
    together = model.generate_many(prompts, **options)
    for prompt, result in zip(prompts, together, strict=True):
        alone = cold().generate(prompt, **options)
        assert bits(result) == bits(alone)
        assert list(map(dict, result.shifts)) == list(map(dict, alone.shifts)) != []


def interrupted(*_: Any, **__: Any) -> int:
    raise KeyboardInterrupt
