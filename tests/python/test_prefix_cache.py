"""Texts that begin like earlier ones: what is computed, what is kept, and that no answer depends on it."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import golden
from edgewise import Model, Prompt, Result, _native
from edgewise.chat import split_reasoning
from edgewise.checkpoints import EVERY, GAP, Markers, Spacing, places
from edgewise.reading import SHORT

FAR = Spacing(GAP, EVERY)
CHAT = Markers(message=1, thought=2)


def ids(seed: int, tokens: int) -> list[int]:
    return [(i * 31 + i * i * 7 + seed) % 500 for i in range(tokens)]


def opened(cache_bytes: int | None = None, name: str = "dense_text") -> Model:
    path = golden.FOLDER / name
    return Model.from_pretrained(path, dtype="int4", threads=2, cache_bytes=cache_bytes)


@cache
def cold() -> Model:
    return opened(0)


class TestPlaces:
    def test_a_text_without_borders(self) -> None:
        assert places([9] * 10, 0, 0, [], Markers(), FAR) == []
        assert places([9] * GAP, 0, 0, [], Markers(), FAR) == [GAP]
        assert places([9] * 3000, 0, 0, [], Markers(), FAR) == [1024, 2048, 3000]
        assert places([9] * 3000, 1500, 0, [], Markers(), FAR) == [2524, 3000]

    def test_the_beginning_of_an_answer_always(self) -> None:
        assert places([1, 9, 9, 1, 9, 2, 9], 0, 0, [], CHAT, FAR) == [5]
        assert places([1, 9, 9, 1, 9], 0, 0, [], CHAT, FAR) == [5]
        assert places([1, 9, 9, 1, 9, 2, 9], 5, 5, [], CHAT, FAR) == []

    def test_borders_of_messages_if_they_save_enough(self) -> None:
        text = [1, *[9] * 49, 1, *[9] * 9, 1, *[9] * 59, 1, 9, 2]
        assert places(text, 0, 0, [], CHAT, FAR) == [50, 120 + 2]
        assert places(text, 0, 0, [], CHAT, Spacing(55, EVERY)) == [60, 122]
        assert places(text, 0, 0, [], CHAT, Spacing(1000, 1000)) == [122]

    def test_where_an_earlier_text_parted(self) -> None:
        assert places([9] * 100, 0, 41, [], Markers(), FAR) == [41, 100]
        assert places([9] * 100, 41, 41, [], Markers(), FAR) == [100]
        assert places([9] * 100, 0, GAP - 1, [], Markers(), FAR) == [100]

    def test_never_inside_a_picture(self) -> None:
        assert places([9] * 100, 0, 50, [(40, 30)], Markers(), FAR) == [40, 100]
        assert places([9] * 3000, 0, 0, [(1000, 100)], Markers(), FAR) == [1000, 1100, 2124, 3000]
        assert places([9] * 3000, 0, 0, [(0, 2000)], Markers(), FAR) == [2000, 3000]

    def test_spacing_keeps_a_share(self) -> None:
        assert Spacing.of(4000, 10, 10**9) == FAR
        assert Spacing.of(4000, 10**6, 8 * 10**6) == Spacing(2000, 2000)
        assert Spacing.of(4000, 10**6, 0) == Spacing(4000, 4000)


class TestReuse:
    def test_a_text_that_goes_on(self) -> None:
        model = opened()
        first = model.generate(ids(1, 100), max_new_tokens=40, ignore_eos=True)
        assert first.usage.cached_tokens == 0
        whole = [*ids(1, 100), *first.token_ids, 5, 6]
        second = model.generate(whole, max_new_tokens=20, ignore_eos=True)
        assert second.usage.cached_tokens == 139, "all but the last generated token, which was never read"
        assert second.token_ids == cold().generate(whole, max_new_tokens=20, ignore_eos=True).token_ids

    def test_the_same_prompt_again(self) -> None:
        model = opened()
        results = [model.generate(ids(1, 100), max_new_tokens=3, seed=1, temperature=1.0) for _ in range(2)]
        assert [result.usage.cached_tokens for result in results] == [0, 100]
        assert results[0].token_ids == results[1].token_ids
        assert results[1].timings.prefill_tokens_per_second == 0

    def test_three_questions_on_one_beginning(self) -> None:
        """The second finds where they part, the third profits."""
        model = opened()
        cached = [
            model.generate([*ids(1, 300), *ids(seed, 50)], max_new_tokens=1).usage.cached_tokens
            for seed in (2, 3, 4)
        ]
        assert cached == [0, 0, 300]

    def test_streams_and_sequences_share_it(self) -> None:
        model = opened()
        sequence = model.sequence()
        sequence.append(ids(1, 200))
        *_, last = model.stream([*ids(1, 200), 3], max_new_tokens=1)
        assert last.usage is not None
        assert last.usage.cached_tokens == 200
        other = model.sequence()
        other.append([*ids(1, 200), 4])
        np.testing.assert_array_equal(other.logits(), cold().logits([*ids(1, 200), 4])[-1])

    def test_an_answer_left_early_is_kept(self) -> None:
        model = opened()
        stream = model.stream(ids(1, 10), max_new_tokens=100, ignore_eos=True)
        found = [token_id for _ in range(SHORT + 20) for token_id in next(stream).token_ids]
        stream.close()
        result = model.generate([*ids(1, 10), *found], max_new_tokens=1)
        assert result.usage.cached_tokens == 10 + len(found) - 1

    def test_long_answers_leave_checkpoints(self) -> None:
        model = opened()
        result = model.generate([1, 2, 3], max_new_tokens=EVERY + 200, ignore_eos=True)
        begin = [1, 2, 3, *result.token_ids[: EVERY + 50]]
        again = model.generate([*begin, 7], max_new_tokens=1)
        assert again.usage.cached_tokens == EVERY

    def test_forgetting(self) -> None:
        model = opened()
        model.generate(ids(1, 100), max_new_tokens=1)
        assert model.cached_bytes > 0
        model.clear_cache()
        assert model.cached_bytes == 0
        assert model.generate(ids(1, 100), max_new_tokens=1).usage.cached_tokens == 0

    def test_none_at_all(self) -> None:
        for _ in range(2):
            assert cold().generate(ids(1, 100), max_new_tokens=1).usage.cached_tokens == 0
        assert cold().cached_bytes == 0
        cold().clear_cache()

    @pytest.mark.parametrize("wrong", [-1, 1.5, True, "1"])
    def test_what_is_no_size(self, wrong: Any) -> None:
        with pytest.raises((TypeError, ValueError), match=r"^cache_bytes: "):
            opened(wrong)


class Steps:
    """Watches the steps of a model that has one text at a time."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.native = model._scheduler._batch
        self.taken: list[tuple[int, int]] = []
        """Tokens of each step, and how many it had room for."""
        monkeypatch.setattr(model._scheduler, "_batch", self)

    def step(self, works: Any) -> None:
        ((work, most),) = works
        before = work.left
        self.native.step(works)
        self.taken.append((before - work.left, most))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)


class TestPasses:
    def test_borders_cut_no_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A turn of a conversation is read across the borders in it, and its states are kept."""
        model = Model.from_pretrained("demo", threads=2)
        messages: list[dict[str, Any]] = [{"role": "user", "content": "Repeat: " + "coins " * 20}]
        answer = model.generate(messages, max_new_tokens=4).text
        messages.append({"role": "assistant", "content": answer})
        for words in ("apples keys", "coins books"):
            messages.append({"role": "user", "content": "Repeat: " + words * 20})
        steps = Steps(model, monkeypatch)
        before = len(model._reader.cache or [])
        result = model.generate(messages, max_new_tokens=1, temperature=0)
        computed = result.usage.prompt_tokens - result.usage.cached_tokens
        assert sum(tokens for tokens, _ in steps.taken) == computed
        assert all(tokens == most for tokens, most in steps.taken[:-1])
        assert result.usage.cached_tokens > 0
        assert len(model._reader.cache or []) >= before + 2
        other = Model.from_pretrained("demo", threads=2, cache_bytes=0)
        assert result.token_ids == other.generate(messages, max_new_tokens=1, temperature=0).token_ids

    def test_what_has_no_room_is_not_copied(self) -> None:
        model = opened(1000)
        work = model._reader.text()
        work.read(Prompt(ids(1, 100)))
        assert work._places(0, 0) == []
        assert model.cached_bytes == 0


class TestBounds:
    def test_a_thousand_requests(self) -> None:
        model = opened(1_000_000)
        for i in range(1000):
            prompt = ids(i % 70, 20 + i % 150)
            result = model.generate(prompt, max_new_tokens=1 + i % 3, ignore_eos=True)
            assert model.cached_bytes <= 1_000_000
            if i % 50 == 0:
                wanted = cold().generate(prompt, max_new_tokens=1 + i % 3, ignore_eos=True)
                assert result.token_ids == wanted.token_ids
        assert model.cached_bytes > 500_000

    def test_last_used_first_kept(self) -> None:
        """Room for three states; one of them is used all the time."""
        engine = opened(0)._engine
        sequence = engine.sequence()
        sequence.append(ids(0, 50))
        probe = _native.PrefixCache(engine, 1 << 30)
        path = _native.TextPath()
        path.extend(ids(0, 50))
        probe.put(path, sequence)
        room = _native.PrefixCache(engine, 3 * probe.nbytes)
        paths = []
        for seed in range(6):
            sequence = engine.sequence()
            sequence.append(ids(seed, 50))
            paths.append(_native.TextPath())
            paths[-1].extend(ids(seed, 50))
            room.put(paths[-1], sequence)
            assert room.find(paths[0], 0, 50) is not None
        assert [room.find(path, 0, 50) is not None for path in paths] == [
            True, False, False, False, True, True,
        ]  # fmt: skip
        assert room.nbytes == 3 * probe.nbytes

    def test_pages_and_paths_count_once(self) -> None:
        engine = opened(0)._engine
        held = _native.PrefixCache(engine, 1 << 30)
        sequence, path = engine.sequence(), _native.TextPath()
        path.extend(ids(1, 640))
        sizes = []
        for start in range(0, 640, 64):
            sequence.append(ids(1, 640)[start : start + 64])
            held.put(path, sequence)
            sizes.append(held.nbytes)
        steps = {after - before for before, after in pairwise(sizes)}
        info = opened(0).info()
        pages = 64 * info["kv_bytes_per_token"]
        assert len(steps) == 1
        (step,) = steps
        assert pages + info["state_bytes"] < step < pages + info["state_bytes"] + 2000
        held.put(path, sequence)
        assert held.nbytes == sizes[-1]
        assert len(held) == 10

    def test_room_is_made_beforehand(self) -> None:
        engine = opened(0)._engine
        probe = _native.PrefixCache(engine, 1 << 30)
        paths = []
        for seed in range(4):
            sequence = engine.sequence()
            sequence.append(ids(seed, 50))
            paths.append(_native.TextPath())
            paths[-1].extend(ids(seed, 50))
            probe.put(paths[-1], sequence)
        room = _native.PrefixCache(engine, probe.nbytes)
        for path in paths:
            found = probe.find(path, 0, 50)
            assert found is not None
            room.put(path, found)
        assert room.make_room(room.limit + 1) == []
        assert room.make_room(0) == []
        assert len(room) == 4
        gone = room.make_room(room.limit // 2)
        assert [text for text, _ in gone] == [ids(0, 50), ids(1, 50)]
        assert room.nbytes <= room.limit // 2

    def test_wrong_arguments(self) -> None:
        engine = opened(0)._engine
        held, path, sequence = _native.PrefixCache(engine, 1 << 20), _native.TextPath(), engine.sequence()
        sequence.append([1, 2])
        path.extend([1])
        with pytest.raises(ValueError, match=r"^path: has 1 places, the state 2 tokens"):
            held.put(path, sequence)
        with pytest.raises(ValueError, match=r"^sequence: comes from another model"):
            held.put(path, cold()._engine.sequence())
        with pytest.raises(ValueError, match=r"^start: 2 tokens from index 0 reach beyond the 1"):
            path.mark(0, 2, bytes(16))
        with pytest.raises(ValueError, match=r"^digest: must have 16 bytes"):
            path.mark(0, 1, bytes(15))


def test_many_threads_on_one_cache() -> None:
    model = opened(3_000_000)
    wanted = {
        seed: cold().generate([*ids(1, 90), *ids(seed, 30)], max_new_tokens=8, ignore_eos=True).token_ids
        for seed in range(6)
    }
    failures: list[Any] = []

    def ask(thread: int) -> None:
        for i in range(12):
            seed = (thread + i) % 6
            found = model.generate([*ids(1, 90), *ids(seed, 30)], max_new_tokens=8, ignore_eos=True)
            if found.token_ids != wanted[seed] or model.cached_bytes > 3_000_000:
                failures.append((seed, found.token_ids))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class TestConversation:
    """Twenty turns with thoughts, which the template leaves out of earlier turns, and two pictures."""

    TURNS = 20

    def question(self, turn: int) -> Any:
        words = " ".join(f"word{(turn * 7 + i) % 50}" for i in range(6))
        if turn not in (3, 9):
            return f"Repeat: {words}"
        picture = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(picture).ellipse((24, 24, 72, 72), fill="red" if turn == 3 else "blue")
        return [{"type": "image", "image": picture}, {"type": "text", "text": f"What is it? {words}"}]

    def talk(self, model: Model) -> list[Result]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Answer in few words, and be kind."}]
        results = []
        for turn in range(1, self.TURNS + 1):
            messages.append({"role": "user", "content": self.question(turn)})
            result = model.generate(messages, enable_thinking=True, temperature=0, max_new_tokens=60)
            thought, said = split_reasoning(result.text, True)
            messages.append({"role": "assistant", "content": said or "Yes.", "reasoning_content": thought})
            results.append(result)
        return results

    def test_nothing_is_computed_twice(self) -> None:
        warm = self.talk(Model.from_pretrained("demo", threads=2))
        plain = self.talk(Model.from_pretrained("demo", threads=2, cache_bytes=0))
        assert [result.token_ids for result in warm] == [result.token_ids for result in plain]
        assert [result.prompt_token_ids for result in warm] == [result.prompt_token_ids for result in plain]
        distinct: set[int] = set()
        computed = 0
        for result in warm:
            beginning = 0
            for token_id in [*result.prompt_token_ids, *result.token_ids[:-1]]:
                beginning = hash((beginning, token_id))
                distinct.add(beginning)
            usage = result.usage
            computed += usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1
        everything = sum(result.usage.total_tokens - 1 for result in warm)
        assert everything > 3 * len(distinct), "else there would be little to save"
        assert len(distinct) <= computed <= 1.1 * len(distinct)

    def test_a_picture_is_neither_encoded_nor_read_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = Model.from_pretrained("demo", threads=2, media_cache_bytes=0)
        encoded = []
        features = model._encoder._features

        def counted(*arguments: Any) -> Any:
            encoded.append(arguments)
            return features(*arguments)

        monkeypatch.setattr(model._encoder, "_features", counted)
        self.talk(model)
        assert len(encoded) == 2


class TestVideos:
    def clip(self, level: int) -> list[Any]:
        return [np.full((64, 64, 3), level + 20 * i, np.uint8) for i in range(6)]

    def talk(self, level: int, questions: int = 1) -> list[dict[str, Any]]:
        video = {"type": "video", "video": self.clip(level)}
        talk: list[dict[str, Any]] = []
        for i in range(questions):
            text = {"type": "text", "text": f"Question {i}?"}
            talk.append({"role": "user", "content": [*([] if i else [video]), text]})
            talk.append({"role": "assistant", "content": "Yes."})
        return talk[:-1]

    def test_a_video_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        warm, plain = (Model.from_pretrained("demo", threads=2, cache_bytes=limit) for limit in (None, 0))
        options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
        first = warm.generate(self.talk(10), **options)
        assert first.usage.cached_tokens == 0

        def forbidden(*_: Any) -> Any:
            raise AssertionError("there is nothing left to encode")

        with monkeypatch.context() as patch:
            patch.setattr(warm._encoder, "_features", forbidden)
            second = warm.generate(self.talk(10, 2), **options)
        answer = first.prompt_token_ids.index(warm.tokenizer.encode("<think>")[0])
        assert second.usage.cached_tokens == answer
        assert second.token_ids == plain.generate(self.talk(10, 2), **options).token_ids

        other = warm.generate(self.talk(11), **options)
        assert other.prompt_token_ids == first.prompt_token_ids
        start = warm.prepare(self.talk(11)).media[0].starts[0]
        assert other.usage.cached_tokens <= start
        assert other.token_ids == plain.generate(self.talk(11), **options).token_ids

    def test_cut_back_between_its_frames(self) -> None:
        model = Model.from_pretrained("demo", threads=2)
        sequence = model.sequence()
        sequence.append(self.talk(10))
        (video,) = model.prepare(self.talk(10)).media
        cut = video.starts[1]
        sequence.rewind(cut)
        ids = model.prepare(self.talk(10)).token_ids[:cut]
        fresh = model._engine.sequence()
        fresh.append(ids, model._encoder.encode(model.prepare(self.talk(10)))[:1])
        np.testing.assert_array_equal(sequence.logits(), fresh.logits())
        with pytest.raises(ValueError, match=r"^n_tokens: \d+ is inside "):
            sequence.rewind(sum(video.spans[0]) - 1)


def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[2] / "benches" / "conversation.py"
    sizes = ["--turns", "3", "--words", "4", "--answer", "8", "--repeat", "1", "--threads", "1"]
    command = [sys.executable, str(script), "demo", *sizes]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    computed = {line[:10].strip(): int(line.split()[-1]) for line in lines if "first token" in line}
    assert list(computed) == ["cached", "no history", "no cache"]
    assert computed["cached"] < computed["no cache"]
