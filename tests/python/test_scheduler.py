"""Texts that share steps: each has the bits it has alone, whoever else comes, goes, fails or waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import golden
from edgewise import BusyError, Model, Result, _native, scheduler
from edgewise.scheduler import SLICE, Scheduler, shares


@cache
def demo(cache_bytes: int = 0) -> Model:
    return Model.from_pretrained("demo", threads=2, cache_bytes=cache_bytes)


@cache
def tiny(name: str, dtype: Any) -> Model:
    return Model.from_pretrained(golden.FOLDER / name, dtype=dtype, threads=2, cache_bytes=0)


def opened(**options: Any) -> Model:
    return Model.from_pretrained("demo", threads=2, **options)


def ids(seed: int, tokens: int) -> list[int]:
    return [(i * 31 + i * i * 7 + seed * 13) % 600 for i in range(tokens)]


class Recorder:
    """Stands in for the native batch: tells how many tokens of which work each step had."""

    def __init__(self, model: Model) -> None:
        self._batch = model._scheduler._batch
        self.steps: list[list[tuple[Any, int, int]]] = []
        """Of each work in a step itself, the tokens it had left before, and those it was given."""
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    @property
    def pass_tokens(self) -> int:
        return self._batch.pass_tokens

    def step(self, works: Sequence[tuple[Any, int]]) -> None:
        self.before()
        self.steps.append([(work, work.left, tokens) for work, tokens in works])
        self._batch.step(works)
        self.after()

    @property
    def sizes(self) -> list[int]:
        return [len(step) for step in self.steps]


def recorded(model: Model) -> Recorder:
    recorder = Recorder(model)
    model._scheduler._batch = recorder  # type: ignore[assignment]
    return recorder


def together(recorder: Recorder, held: Scheduler, count: int) -> None:
    """Let no step begin before so many texts are there, once: the first of them leads."""
    arrived = threading.Event()

    def wait() -> None:
        while not arrived.is_set():
            if len(held._waiting) >= count - 1:
                arrived.set()
            arrived.wait(0.001)

    recorder.before = wait


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps wait for texts that came back, however long that takes on a busy machine."""
    monkeypatch.setattr(scheduler, "GRACE", 60.0)


class TestShares:
    def test_decoding_texts_have_their_token(self) -> None:
        assert shares([1, 1, 0, 1], 256) == [1, 1, 0, 1]

    def test_a_prompt_alone_has_a_whole_pass(self) -> None:
        assert shares([1000], 256) == [256]
        assert shares([100], 256) == [100]

    def test_prompts_beside_others_have_a_slice(self) -> None:
        assert shares([1, 1000, 1], 256) == [1, SLICE, 1]
        assert shares([1, 1000], 32) == [1, 32], "a pass may be shorter, on a slow machine"

    def test_short_prompts_first_and_the_oldest_always(self) -> None:
        assert shares([1000, 1000], 256) == [256, 0]
        assert shares([1000, 10, 1000], 256) == [246, 10, 0]
        assert shares([1000, 10, 300], 256) == [64, 10, 182]
        assert shares([1000, 200, 1, 300], 256) == [16, 48, 1, 0]
        assert shares([10, 10], 256) == [10, 10]

    @given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(1, 256))
    def test_all_that_there_is_room_for(self, left: list[int], most: int) -> None:
        found = shares(left, most)
        pairs = list(zip(found, left, strict=True))
        assert all(tokens == had for tokens, had in pairs if had <= 1)
        prompts = [(tokens, had) for tokens, had in pairs if had > 1]
        assert all(0 <= tokens <= had for tokens, had in prompts)
        budget = most if len(prompts) == len(left) else min(most, SLICE)
        assert sum(tokens for tokens, _ in prompts) == min(budget, sum(had for _, had in prompts))
        assert not prompts or prompts[0][0] > 0


class TestBits:
    @pytest.mark.parametrize(
        "name", ["dense_text", "moe_text", "qwen3_next_text", "qwen3", "qwen3_moe", "llama", "yarn"]
    )
    @pytest.mark.parametrize("dtype", ["f32", "int4"])
    def test_logits_on_reference_checkpoints(self, name: str, dtype: str) -> None:
        """Pieces of random sizes, of random ones of five texts in each step."""
        engine = tiny(name, dtype)._engine
        random = np.random.default_rng(7)
        texts = [random.integers(0, engine.vocab_size, 5 + 11 * i).tolist() for i in range(5)]
        wanted = [engine.logits(text) for text in texts]
        sequences, batch = [engine.sequence() for _ in texts], engine.batch()
        works = [sequence.work(text) for sequence, text in zip(sequences, texts, strict=True)]
        while not all(work.finished for work in works):
            batch.step([(work, int(random.integers(0, 8))) for work in works if random.random() < 0.7])
            for sequence, logits in zip(sequences, wanted, strict=True):
                if len(sequence):
                    assert sequence.logits().tobytes() == logits[len(sequence) - 1].tobytes()
        assert [len(sequence) for sequence in sequences] == [len(text) for text in texts]

    request = st.fixed_dictionaries(
        {
            "tokens": st.integers(1, 150),
            "new": st.integers(1, 25),
            "seed": st.integers(0, 3),
            "temperature": st.sampled_from([0.0, 1.0]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
        }
    )

    @settings(max_examples=25)
    @given(st.lists(request, min_size=1, max_size=9), st.integers(1, 8), st.sampled_from([0, 10**7]))
    def test_tokens_are_those_of_running_alone(
        self, requests: list[dict[str, Any]], most: int, cache_bytes: int
    ) -> None:
        """Texts join and leave as others end."""
        prompts = [ids(request["seed"], request["tokens"]) for request in requests]
        each = [
            {name: request[name] for name in ("seed", "temperature", "repetition_penalty")}
            | {"max_new_tokens": request["new"]}
            for request in requests
        ]
        found = demo(cache_bytes).generate_many(prompts, max_batch=most, each=each, logprobs=2)
        for prompt, options, result in zip(prompts, each, found, strict=True):
            alone = demo().generate(prompt, **options, logprobs=2)
            assert (result.token_ids, result.text) == (alone.token_ids, alone.text)
            assert result.logprobs == alone.logprobs
            assert (result.finish_reason, result.seed) == (alone.finish_reason, alone.seed)
            assert result.usage.prompt_tokens == len(prompt)

    def test_pictures(self) -> None:
        picture = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(picture).ellipse((24, 24, 72, 72), fill="red")
        prompts = ["Which shape do you see?", "Hello!", "Which colour is it?"]
        each: list[dict[str, Any]] = [{"images": picture}, {}, {"images": [picture]}]
        found = demo().generate_many(prompts, each=each, temperature=0, max_new_tokens=20)
        alone = [
            demo().generate(prompt, **options, temperature=0, max_new_tokens=20)
            for prompt, options in zip(prompts, each, strict=True)
        ]
        assert [result.token_ids for result in found] == [result.token_ids for result in alone]

    @pytest.mark.usefixtures("patient")
    @pytest.mark.parametrize("count", [2, 6, 11])
    def test_threads_share_steps(self, count: int) -> None:
        model = opened(cache_bytes=0)
        recorder = recorded(model)
        together(recorder, model._scheduler, min(count, 8))

        def ask(model: Model, seed: int) -> list[int]:
            options: dict[str, Any] = {"temperature": 1.0, "seed": seed, "ignore_eos": True}
            if seed % 2:
                pieces = model.stream(ids(seed, 30 + 9 * seed), max_new_tokens=25, **options)
                return [token for piece in pieces for token in piece.token_ids]
            return model.generate(ids(seed, 30 + 9 * seed), max_new_tokens=25, **options).token_ids

        found = in_threads([lambda seed=seed: ask(model, seed) for seed in range(count)])  # type: ignore[misc]
        assert found == [ask(demo(), seed) for seed in range(count)]
        assert max(recorder.sizes) == min(count, 8)

    def test_a_sequence_beside_others(self) -> None:
        model = opened(cache_bytes=0)
        stop = threading.Event()

        def crowd() -> None:
            while not stop.is_set():
                model.generate(ids(5, 60), max_new_tokens=20)

        def grow(model: Model) -> tuple[list[int], bytes]:
            sequence = model.sequence()
            sequence.append(ids(1, 300))
            sequence.generate(max_new_tokens=10, temperature=1.0, seed=3, ignore_eos=True)
            pieces = sequence.stream(max_new_tokens=50, temperature=1.0, seed=4, ignore_eos=True)
            given = [token for _ in range(7) for token in next(pieces).token_ids]
            pieces.close()
            assert sequence.token_ids[-7:] == given, "nothing runs ahead of what was given out"
            sequence.append(ids(2, 100))
            return sequence.token_ids, sequence.logits().tobytes()

        thread = threading.Thread(target=crowd)
        thread.start()
        try:
            found = [grow(model) for _ in range(3)]
        finally:
            stop.set()
            thread.join()
        assert found == [grow(demo())] * 3


class TestOrder:
    def test_a_long_prompt_stops_nobody(self) -> None:
        """In every step in which a text decodes it gets its token, and the prompt a slice."""
        model = opened(cache_bytes=0)
        model.generate(ids(0, 1500), max_new_tokens=1)
        recorder = recorded(model)
        prompts = [ids(1, 20), ids(2, 4500), ids(3, 40)]
        each = [{"max_new_tokens": 60}, {"max_new_tokens": 3}, {"max_new_tokens": 60}]
        found = model.generate_many(prompts, each=each, ignore_eos=True)
        first = recorder.steps[0]
        assert [left for _, left, _ in first] == [20, 4500, 40]
        assert [tokens for _, _, tokens in first] == [20, recorder.pass_tokens - 60, 40], "short ones at once"
        decoding = [step for step in recorder.steps[1:] if any(left <= 1 for _, left, _ in step)]
        for step in decoding[:59]:
            assert [tokens for _, left, tokens in step if left <= 1] == [1, 1]
            assert sum(tokens for _, left, tokens in step if left > 1) <= SLICE
        assert [len(result.token_ids) for result in found] == [60, 3, 60]

    @pytest.mark.usefixtures("patient")
    def test_the_oldest_go_first(self) -> None:
        model = opened(cache_bytes=0, max_batch=3)
        recorder = recorded(model)
        together(recorder, model._scheduler, 7)
        ended: list[int] = []

        def ask(seed: int) -> None:
            model.generate(ids(seed, 10), max_new_tokens=10, ignore_eos=True)
            ended.append(seed)

        in_threads([lambda seed=seed: ask(seed) for seed in range(7)])  # type: ignore[misc]
        assert max(recorder.sizes) == 3
        assert len(ended) == 7
        # Seven texts of eleven steps, three at a time; a thread may come late for some.
        assert len(recorder.steps) < 7 * 10 * 0.8

    def test_a_paused_stream_keeps_nobody_waiting(self) -> None:
        model = opened(max_batch=1)
        paused = model.stream(ids(1, 10), max_new_tokens=30, ignore_eos=True, seed=1)
        tokens = list(next(paused).token_ids)
        [other] = in_threads([lambda: model.generate(ids(2, 10), max_new_tokens=5, ignore_eos=True)])
        assert len(other.token_ids) == 5
        assert model._scheduler._waiting == {}, "nor does it run ahead"
        tokens += [token for piece in paused for token in piece.token_ids]
        alone = demo().generate(ids(1, 10), max_new_tokens=30, ignore_eos=True, seed=1)
        assert tokens == alone.token_ids

    @pytest.mark.usefixtures("patient")
    def test_streams_of_threads_meet(self) -> None:
        """Each takes its piece and comes back, and the step waits for that moment."""
        model = opened(cache_bytes=0)
        recorder = recorded(model)
        together(recorder, model._scheduler, 4)

        def read(seed: int) -> None:
            for _ in model.stream(ids(seed, 10), max_new_tokens=60, ignore_eos=True):
                pass

        in_threads([lambda seed=seed: read(seed) for seed in range(4)])  # type: ignore[misc]
        assert len(recorder.steps) < 4 * 60 * 0.7, recorder.sizes


class TestEnds:
    def test_cancelled_by_its_consumer(self) -> None:
        cancel = threading.Event()
        pieces = []
        for piece in demo().stream(ids(1, 10), max_new_tokens=500, ignore_eos=True, cancel=cancel):
            pieces.append(piece)
            if len(pieces) == 5:
                cancel.set()
        assert [piece.finish_reason for piece in pieces] == [None] * 5 + ["cancelled"]
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.completion_tokens == 5
        alone = demo().generate(ids(1, 10), max_new_tokens=5, ignore_eos=True)
        assert [token for piece in pieces for token in piece.token_ids] == alone.token_ids

    def test_cancelled_by_another_thread(self) -> None:
        model = opened(cache_bytes=0)
        recorder, cancel = recorded(model), threading.Event()
        recorder.after = lambda: cancel.set() if len(recorder.steps) == 20 else None
        result = model.generate(ids(1, 10), max_new_tokens=20_000, ignore_eos=True, cancel=cancel)
        assert result.finish_reason == "cancelled"
        assert 15 < len(result.token_ids) <= 20

    def test_cancelled_before_and_while_the_prompt_is_read(self) -> None:
        model = opened(cache_bytes=0)
        recorder, cancel = recorded(model), threading.Event()
        recorder.after = lambda: cancel.set() if len(recorder.steps) == 3 else None
        result = model.generate(ids(1, 5000), cancel=cancel)
        assert (result.finish_reason, result.token_ids, len(recorder.steps)) == ("cancelled", [], 3)
        result = model.generate(ids(1, 5000), cancel=cancel)
        assert (result.finish_reason, result.text, len(recorder.steps)) == ("cancelled", "", 3)
        assert result.usage.completion_tokens == 0
        assert model._scheduler._open == model._scheduler._waiting == {}

    def test_one_of_many_is_cancelled(self) -> None:
        cancel = threading.Event()
        cancel.set()
        each: list[dict[str, Any]] = [{}, {"cancel": cancel}, {}]
        prompts = [ids(seed, 20) for seed in range(3)]
        found = demo().generate_many(prompts, each=each, max_new_tokens=5, ignore_eos=True)
        assert [result.finish_reason for result in found] == ["length", "cancelled", "length"]

    @pytest.mark.parametrize("wrong", [1, True, "now"])
    def test_what_cannot_cancel(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"^cancel: expected an event"):
            demo().generate([1], cancel=wrong)

    def test_failing_ones_do_not_hurt_others(self) -> None:
        model = demo()
        prompts: list[Any] = [ids(1, 30), [10**6], ids(2, 30), [1] * 40_000, {}, ids(3, 30)]
        found = model.generate_many(prompts, return_exceptions=True, max_new_tokens=8, seed=1)
        assert [type(result).__name__ for result in found] == [
            "Result", "ValueError", "Result", "ContextError", "TypeError", "Result",
        ]  # fmt: skip
        for place in (0, 2, 5):
            alone = model.generate(prompts[place], max_new_tokens=8, seed=1)
            assert found[place].token_ids == alone.token_ids
        with pytest.raises(ValueError, match=r"^ids\[0\]: 1000000 is outside"):
            model.generate_many(prompts, max_new_tokens=8)
        assert model._scheduler._open == model._scheduler._waiting == {}

    def test_an_error_of_the_engine_is_its_text_s_own(self) -> None:
        """A work on a sequence of another engine, and one whose sampler has another vocabulary."""
        engine, other = demo()._engine, tiny("dense_text", "int4")._engine
        sequences = [engine.sequence(), other.sequence(), engine.sequence()]
        samplers = [_native.Sampler(size) for size in (engine.vocab_size, engine.vocab_size, 5)]
        works = [
            sequence.work([1, 2], None, sampler)
            for sequence, sampler in zip(sequences, samplers, strict=True)
        ]
        engine.batch().step([(work, 2) for work in works])
        assert works[0].result() == samplers_choice(engine, [1, 2])
        with pytest.raises(ValueError, match=r"^sequence: comes from another model"):
            works[1].result()
        with pytest.raises(ValueError, match="logits"):
            works[2].result()

    def test_work_by_hand(self) -> None:
        engine = demo()._engine
        sequence, batch = engine.sequence(), engine.batch()
        work = sequence.work([1, 2, 3])
        with pytest.raises(RuntimeError, match=r"^work: there is no result"):
            work.result()
        batch.step([(work, 2)])
        assert (work.left, work.finished, len(sequence)) == (1, False, 2)
        work.abandon()
        batch.step([(work, 1)])
        assert (work.finished, len(sequence)) == (True, 2)
        twice = [sequence.work([5]), sequence.work([6])]
        batch.step([(each, 1) for each in twice])
        assert (twice[0].result(), len(sequence)) == (None, 3)
        with pytest.raises(ValueError, match=r"^sequence: it is in use"):
            twice[1].result()
        nothing = engine.sequence().work([], None, _native.Sampler(engine.vocab_size))
        batch.step([(nothing, 1)])
        with pytest.raises(ValueError, match=r"^sequence: it is empty"):
            nothing.result()

    def test_copies_kept_by_hand(self) -> None:
        """In the middle of a step, at its end, and of what is given up."""
        engine = demo()._engine
        text = ids(1, 30)
        sequence, batch = engine.sequence(), engine.batch()
        work = sequence.work(text, None, None, [4, 10, 11, 30])
        assert work.kept() == []
        batch.step([(work, 10)])
        kept = work.kept()
        assert [len(copy) for copy in kept] == [4, 10]
        batch.step([(work, 5)])
        work.abandon()
        kept += work.kept()
        assert [len(copy) for copy in kept] == [4, 10, 11]
        assert (len(sequence), work.kept()) == (15, [])
        whole = engine.sequence()
        whole.append(text)
        for copy in [*kept, sequence]:
            copy.append(text[len(copy) :])
            np.testing.assert_array_equal(copy.logits(), whole.logits())

    @pytest.mark.parametrize("places", [[0], [3, 3], [2, 1], [6]])
    def test_places_that_do_not_exist(self, places: list[int]) -> None:
        with pytest.raises(ValueError, match=r"^places\[\d\]: is \d, must be more than"):
            demo()._engine.sequence().work([1, 2, 3, 4, 5], None, None, places)

    def test_ctrl_c_in_a_leader_leaves_the_others_to_the_next(self) -> None:
        """It strikes behind a step that was also for others."""
        model = opened(cache_bytes=0)
        recorder = recorded(model)
        together(recorder, model._scheduler, 4)
        struck: list[int] = []

        def strike() -> None:
            if len(recorder.steps) in (3, 9):
                struck.append(threading.get_ident())
                raise KeyboardInterrupt

        recorder.after = strike

        def ask(seed: int) -> Result | None:
            try:
                return model.generate(ids(seed, 20), max_new_tokens=30, seed=seed, ignore_eos=True)
            except KeyboardInterrupt:
                return None

        found = in_threads([lambda seed=seed: ask(seed) for seed in range(4)])  # type: ignore[misc]
        assert len(struck) == 2
        assert sum(result is None for result in found) == 2
        for seed, result in enumerate(found):
            alone = demo().generate(ids(seed, 20), max_new_tokens=30, seed=seed, ignore_eos=True)
            assert result is None or result.token_ids == alone.token_ids
        assert model._scheduler._open == model._scheduler._waiting == {}


class TestBounds:
    def test_more_than_the_model_was_opened_for(self) -> None:
        model = opened(max_requests=2)
        streams = [model.stream(ids(seed, 10), ignore_eos=True) for seed in range(3)]
        next(streams[0])
        next(streams[1])
        with pytest.raises(BusyError, match=r"^model: 2 texts are under way.*\(max_requests\)"):
            next(streams[2])
        with pytest.raises(BusyError):
            model.sequence().append([1])
        streams[0].close()
        assert len(model.generate([1], max_new_tokens=3, ignore_eos=True).token_ids) == 3

    @pytest.mark.parametrize("name", ["max_batch", "max_requests"])
    @pytest.mark.parametrize("wrong", [0, 1.5, True, "1"])
    def test_what_is_no_limit(self, name: str, wrong: Any) -> None:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            opened(**{name: wrong})

    def test_arguments_of_many(self) -> None:
        model = demo()
        assert model.generate_many([]) == []
        wrong: Any
        for wrong in ("Hello!", {}, 5, b"x"):
            with pytest.raises(TypeError, match=r"^prompts: expected a list of prompts"):
                model.generate_many(wrong)
        with pytest.raises(ValueError, match=r"^each: there are 1 for 2 prompts"):
            model.generate_many([[1], [2]], each=[{}])
        with pytest.raises(ValueError, match=r"^max_batch: "):
            model.generate_many([[1]], max_batch=0)
        with pytest.raises(TypeError, match="unexpected keyword argument 'tempature'"):
            model.generate_many([[1]], tempature=1)  # type: ignore[call-arg]

    def test_the_cache_serves_many(self) -> None:
        model = opened(cache_bytes=10**7)
        prompts = [[*ids(1, 200), *ids(seed, 40)] for seed in range(2, 8)]
        found = model.generate_many(prompts, max_batch=2, max_new_tokens=4, ignore_eos=True)
        cached = [result.usage.cached_tokens for result in found]
        assert cached[:2] == [0, 0]
        assert cached[-1] == 200
        again = model.generate_many(prompts, max_new_tokens=4, ignore_eos=True)
        assert [result.usage.cached_tokens for result in again] == [240] * 6
        assert [result.token_ids for result in again] == [result.token_ids for result in found]


def samplers_choice(engine: Any, tokens: list[int]) -> Any:
    sequence = engine.sequence()
    sequence.append(tokens)
    return _native.Sampler(engine.vocab_size).sample(sequence)


def test_many_threads_that_do_anything() -> None:
    """Whole answers, streams left early, cancelled ones and sequences, in more threads than a step takes."""
    model = opened(cache_bytes=3_000_000, max_batch=3)

    @cache
    def alone(seed: int) -> list[int]:
        result = demo().generate(ids(seed, 20 + 40 * seed), max_new_tokens=12, seed=seed, ignore_eos=True)
        return result.token_ids

    wanted = [alone(seed) for seed in range(6)]
    failures: list[Any] = []

    def act(thread: int) -> None:
        random = np.random.default_rng(thread)
        for _ in range(12):
            seed, deed = int(random.integers(6)), int(random.integers(5))
            prompt = ids(seed, 20 + 40 * seed)
            options: dict[str, Any] = {"max_new_tokens": 12, "seed": seed, "ignore_eos": True}
            if deed == 0:
                found = model.generate(prompt, **options).token_ids
            elif deed == 1:
                stream = model.stream(prompt, **options)
                found = [token for _ in range(5) for token in next(stream).token_ids]
                stream.close()
            elif deed == 2:
                cancel = threading.Event()
                found = []
                for piece in model.stream(prompt, cancel=cancel, **options):
                    found += piece.token_ids
                    if len(found) == 3:
                        cancel.set()
            elif deed == 3:
                with model.sequence() as sequence:
                    sequence.append(prompt)
                    found = sequence.generate(**options).token_ids
            else:
                found = model.generate_many([prompt] * 2, **options)[1].token_ids
            if not found or found != wanted[seed][: len(found)]:
                failures.append((deed, seed, found))

    in_threads([lambda thread=thread: act(thread) for thread in range(8)])  # type: ignore[misc]
    assert failures == []
    assert model._scheduler._open == model._scheduler._waiting == {}
