"""Encoding: each picture once, within the cache's bounds, from many threads, and stopped at any time."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fakes
from edgewise.encoder import FeatureCache
from edgewise.prompt import Prompt
from fakes import FakeFeatures, FakeModel

TOKENS = 4
"""Of each picture here."""
NBYTES = TOKENS * fakes.HIDDEN_SIZE * 4


def picture(level: int) -> Image.Image:
    return Image.new("L", (64, 64), level)


def prompt(model: FakeModel, *levels: int) -> Prompt:
    return model.prepare("What?", images=[picture(level) for level in levels], min_pixels=1)


class Entry:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def cache_of(limit: int) -> Any:
    return FeatureCache(limit)


class TestCache:
    def test_what_was_used_longest_ago_goes_first(self) -> None:
        cache = cache_of(30)
        for name in (b"a", b"b", b"c"):
            cache.put(name, Entry(10))
        cache.get(b"a")
        cache.put(b"d", Entry(10))
        assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
        assert (cache.nbytes, len(cache)) == (30, 3)

    def test_what_is_too_large_drives_nothing_out(self) -> None:
        cache = cache_of(30)
        cache.put(b"a", Entry(30))
        cache.put(b"b", Entry(31))
        assert cache.get(b"a") is not None
        assert cache.get(b"b") is None

    def test_zero_holds_nothing(self) -> None:
        cache = cache_of(0)
        cache.put(b"a", Entry(1))
        assert (cache.nbytes, len(cache)) == (0, 0)

    @given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.integers(1, 40), st.booleans())))
    def test_bytes_are_counted_and_bounded(self, steps: list[tuple[bytes, int, bool]]) -> None:
        cache = cache_of(100)
        held: dict[bytes, int] = {}
        for name, nbytes, put in steps:
            if put:
                held.setdefault(name, nbytes)
                cache.put(name, Entry(held[name]))
            found = cache.get(name)
            if found is None:
                held.pop(name, None)
            else:
                assert found.nbytes == held[name]
            assert cache.nbytes <= 100


class TestEncoder:
    def test_the_same_picture_is_encoded_once(self) -> None:
        model = FakeModel()
        encoded = model._encoder.encode(prompt(model, 0, 255, 0))
        assert [features.mean for _, features in encoded] == [-1, 1, -1]  # type: ignore[attr-defined]
        assert len(model.engine.encoded) == 2
        model.generate(prompt(model, 255))
        model.logits(prompt(model, 0))
        assert len(model.engine.encoded) == 2

    def test_features_stand_where_their_tokens_do(self) -> None:
        model = FakeModel()
        asked = prompt(model, 0, 255)
        model.generate(asked)
        sequence = model.engine.sequences[0]
        for start, features in sequence.media:
            assert asked.token_ids[start - 1] == fakes.VISION_START
            assert asked.token_ids[start : start + features.tokens] == [fakes.IMAGE_PAD] * TOKENS
            assert asked.token_ids[start + features.tokens] == fakes.VISION_END
        assert [features.mean for _, features in sequence.media] == [-1, 1]

    def test_without_a_cache_a_prompt_still_encodes_each_picture_once(self) -> None:
        model = FakeModel(media_cache_bytes=0)
        model.generate(prompt(model, 0, 0))
        assert len(model.engine.encoded) == 1
        model.generate(prompt(model, 0))
        assert len(model.engine.encoded) == 2
        assert model._encoder.cache.nbytes == 0

    def test_the_cache_is_bounded(self) -> None:
        model = FakeModel(media_cache_bytes=2 * NBYTES)
        for level in range(10):
            model.generate(prompt(model, level))
            assert model._encoder.cache.nbytes <= 2 * NBYTES
        model.generate(prompt(model, 9, 8))
        assert len(model.engine.encoded) == 10

    @pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), ("1", TypeError), (1.5, TypeError)])
    def test_impossible_bounds(self, limit: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^media_cache_bytes: "):
            FakeModel(media_cache_bytes=limit)

    def test_threads_that_ask_for_the_same_picture_encode_it_once(self) -> None:
        model = FakeModel()
        model.engine.before_encode = lambda: time.sleep(0.05)
        asked = prompt(model, 7)
        results: list[list[tuple[int, Any]]] = []
        threads = [
            threading.Thread(target=lambda: results.append(model._encoder.encode(asked))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 8
        assert len({id(features) for result in results for _, features in result}) == 1
        assert len(model.engine.encoded) == 1

    def test_a_picture_at_hand_does_not_wait_for_another_threads(self) -> None:
        model = FakeModel()
        known, new = prompt(model, 1), prompt(model, 2)
        model._encoder.encode(known)
        started, release = threading.Event(), threading.Event()

        def slow() -> None:
            started.set()
            assert release.wait(10)

        model.engine.before_encode = slow
        thread = threading.Thread(target=model._encoder.encode, args=(new,))
        thread.start()
        assert started.wait(10)
        assert len(model._encoder.encode(known)) == 1
        release.set()
        thread.join()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_interrupt_leaves_nothing_half(self, error: type[BaseException]) -> None:
        model = FakeModel()
        asked = prompt(model, 1, 2)

        def stop_at_the_second() -> None:
            if model.engine.encoded:
                raise error

        model.engine.before_encode = stop_at_the_second
        with pytest.raises(error):
            model.generate(asked)
        assert model.engine.sequences[0].appended == []
        assert len(model._encoder.cache) == 1, "what was finished is kept"
        model.engine.before_encode = lambda: None
        assert model.generate(asked).text == "Hello."
        assert len(model.engine.encoded) == 2


class TestProgress:
    def test_layers_add_up_to_the_tokens_of_the_prompt(self) -> None:
        model = FakeModel()
        calls: list[tuple[int, int, str]] = []
        model.generate(prompt(model, 1, 2), progress=lambda *call: calls.append(call))
        assert [(done, total) for done, total, _ in calls] == [(d, 8) for d in (2, 4, 4, 6, 8, 8)]
        assert calls[0][2] == "images[0]"
        assert calls[-1][2] == "images[1]"

    def test_pictures_at_hand_are_reported_as_done(self) -> None:
        model = FakeModel()
        model.generate(prompt(model, 1))
        calls: list[int] = []
        model.generate(prompt(model, 1), progress=lambda done, *_: calls.append(done))
        assert calls == [TOKENS]

    def test_it_may_stop_the_work(self) -> None:
        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        model = FakeModel()
        with pytest.raises(KeyboardInterrupt):
            model.generate(prompt(model, 1), progress=stop)
        assert len(model._encoder.cache) == 0

    def test_text_has_none(self) -> None:
        calls: list[Any] = []
        FakeModel().generate("Hi", progress=lambda *call: calls.append(call))
        assert calls == []

    @pytest.mark.parametrize("progress", [5, "yes"])
    def test_what_is_no_progress(self, progress: Any) -> None:
        with pytest.raises(TypeError, match=r"^progress: expected"):
            FakeModel().generate("Hi", progress=progress)


def test_time_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def tick(seconds: float) -> None:
        now[0] += seconds

    model = FakeModel("")
    model.engine.before_encode = lambda: tick(100.0)
    monkeypatch.setattr(model.engine, "before_append", lambda _: tick(10.0))
    timings = model.generate(prompt(model, 1)).timings
    assert (timings.vision_seconds, timings.prefill_seconds) == (100, 10)
    assert timings.time_to_first_token == 110
    assert model.generate("Hi").timings.vision_seconds == 0


def test_reading_images_counts_as_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    load = Image.Image.load

    def slow_load(image: Image.Image) -> Any:
        now[0] = 7.0
        return load(image)

    monkeypatch.setattr(Image.Image, "load", slow_load)
    timings = FakeModel("").generate("What?", images=picture(1)).timings
    assert (timings.vision_seconds, timings.time_to_first_token, timings.prefill_seconds) == (7, 7, 0)


def test_a_prompt_counts_its_image_tokens() -> None:
    model = FakeModel()
    asked = prompt(model, 1)
    assert model.generate(asked).usage.prompt_tokens == len(asked) == len(model.prepare("What?")) + TOKENS + 2


def test_fake_features_know_their_pixels() -> None:
    """What the tests above rely on."""
    model = FakeModel()
    (group,) = prompt(model, 255).media[0].prepared.groups()
    features = FakeFeatures(group.pixel_values(), group.grid_hw)
    assert (features.mean, features.tokens, features.nbytes) == (1.0, TOKENS, NBYTES)
