"""Ctrl-C: the work stops soon, and what was computed so far can be used."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import golden
from edgewise import Model, Piece, _native

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")

CHUNK = 256
"""Tokens between two looks for signals while a prompt is read."""
SOON = 3.0
"""Seconds within which the work must end, on a busy machine too; a chunk takes some milliseconds."""


@cache
def demo() -> Model:
    return Model.from_pretrained("demo", threads=2)


def ids(count: int) -> list[int]:
    return [(i * 7919 + i * i) % demo().vocab_size for i in range(count)]


@contextmanager
def interrupted(ready: Callable[[], bool], delay: float = 0.0) -> Iterator[None]:
    """Send SIGINT `delay` seconds after `ready`; the block must be left by KeyboardInterrupt soon after."""
    sent: list[float] = []
    left = threading.Event()

    def send() -> None:
        while not ready() and not left.is_set():
            time.sleep(0.001)
        time.sleep(delay)
        if not left.is_set():
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
        seconds = time.monotonic() - sent[0]
    finally:
        left.set()
        thread.join()
    assert seconds < SOON


def test_while_a_prompt_is_read() -> None:
    model, prompt = demo(), ids(demo().context_length)
    sequence = model.sequence()
    with interrupted(lambda: True, delay=0.1):
        sequence.append(prompt)
    done = len(sequence)
    assert done < len(prompt)

    more = prompt[done : done + 100]
    sequence.append(more)
    assert len(sequence) == done + 100
    fresh = model.sequence()
    fresh.append(prompt[: done + 100])
    np.testing.assert_array_equal(sequence.logits(), fresh.logits())


def test_while_tokens_are_generated() -> None:
    model = demo()
    sequence, sampler = model._engine.sequence(), _native.Sampler(model.vocab_size, seed=1)
    tokens = ids(10)
    sequence.append(tokens)
    with interrupted(lambda: len(tokens) > 50):
        for _ in range(20_000):
            token, _, _ = sampler.sample(sequence)
            tokens.append(token)
            sequence.append([token])
    assert 50 < len(tokens) < 20_000
    # The signal may come between the two last lines of the loop, but not inside a token.
    assert len(tokens) - len(sequence) in (0, 1)
    fresh = model.sequence()
    fresh.append(tokens[: len(sequence)])
    np.testing.assert_array_equal(sequence.logits(), fresh.logits())


def test_while_a_model_generates() -> None:
    model = demo()
    pieces: list[Piece] = []
    stream = model.stream(ids(10), max_new_tokens=20_000, ignore_eos=True, seed=1, temperature=1.0)
    with interrupted(lambda: len(pieces) > 20):
        for piece in stream:
            pieces.append(piece)
    assert 20 < len(pieces) < 20_000
    again = model.generate(ids(10), max_new_tokens=15, ignore_eos=True, seed=1, temperature=1.0)
    assert again.token_ids == [token_id for piece in pieces[:15] for token_id in piece.token_ids]


def test_while_all_logits_are_computed() -> None:
    model = demo()
    with interrupted(lambda: True, delay=0.1):
        while True:
            model.logits(ids(4 * CHUNK))
    assert model.logits(ids(3)).shape == (3, model.vocab_size)


def test_while_a_picture_is_encoded() -> None:
    model = Model.from_pretrained("demo", threads=2, media_cache_bytes=0)
    picture = np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), np.uint8)
    prompt = model.prepare("Describe the image.", images=picture, max_pixels=1024 * 1024)
    with interrupted(lambda: True, delay=0.1):
        while True:
            model.generate(prompt, max_new_tokens=1)
    assert model.generate(prompt, max_new_tokens=1).usage.prompt_tokens > 1024


def test_while_the_tower_runs() -> None:
    """Nothing but the tower's own looks for signals between its blocks can hear this one."""
    engine = demo()._engine
    values = np.random.default_rng(2).uniform(-1, 1, (2304, 1536)).astype(np.float32)
    with interrupted(lambda: True, delay=0.1):
        while True:
            engine.encode(values, (48, 48))
    fresh = Model.from_pretrained("demo")._engine
    found, wanted = (each.encode(values[:16], (4, 4)).embeddings for each in (engine, fresh))
    np.testing.assert_array_equal(found, wanted)


class StoppedError(Exception):
    """Raised by a progress bar."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedError])
def test_while_a_checkpoint_is_converted(tmp_path: Path, error: type[BaseException]) -> None:
    calls = []

    def progress(done: int, total: int, name: str) -> None:
        calls.append((done, total, name))
        if len(calls) == 5:
            raise error

    target = tmp_path / "out.safetensors"
    with pytest.raises(error):
        _native.quantize(str(golden.FOLDER / "dense_text"), str(target), "int4", 2, progress)
    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedError])
def test_while_a_checkpoint_is_opened(error: type[BaseException]) -> None:
    def progress(*_: object) -> None:
        raise error

    with pytest.raises(error) as caught:
        Model.from_pretrained(golden.FOLDER / "dense_text", dtype="int4", progress=progress)
    assert caught.value.__cause__ is None
