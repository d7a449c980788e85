"""Several Python threads on one model, and processes forked from one that has computed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edgewise import Model, Tokenizer

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")

QUESTIONS = [
    "Repeat: coins apples",
    "What is the capital of France?",
    "Spell a b c backwards.",
    "Hello!",
    "Sort these numbers: 41, 17",
    "What can you do?",
]


@cache
def demo(threads: int = 2) -> Model:
    return Model.from_pretrained("demo", threads=threads)


def in_threads(calls: list[Callable[[], object]]) -> list[object]:
    """Results of all calls, begun at the same moment."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_generating_beside_others_gives_the_same_tokens(threads: int) -> None:
    model = demo(threads)

    def ask(question: str, seed: int) -> list[int]:
        return model.generate(
            question, temperature=1.0, seed=seed, max_new_tokens=40, ignore_eos=True
        ).token_ids

    cases = [(question, seed) for seed, question in enumerate(QUESTIONS)]
    alone = [ask(*case) for case in cases]
    together = in_threads([lambda case=case: ask(*case) for case in cases])  # type: ignore[misc]
    assert together == alone


def test_streams_taken_in_turns() -> None:
    model = demo()
    alone = [model.generate(question, temperature=0).text for question in QUESTIONS]
    streams = [model.stream(question, temperature=0) for question in QUESTIONS]
    texts = [""] * len(streams)
    running = set(range(len(streams)))
    while running:
        for i in sorted(running):
            piece = next(streams[i], None)
            if piece is None:
                running.remove(i)
            else:
                texts[i] += piece.text
    assert texts == alone


def test_forks_of_a_sequence_go_their_ways_in_threads() -> None:
    model = demo()
    origin = model.sequence()
    origin.append(range(100))
    before = origin.logits()
    forks = [origin.fork() for _ in range(4)]

    def go_on(i: int) -> bytes:
        for token in range(i, i + 80):
            forks[i].append([token])
        return forks[i].logits().tobytes()

    together = in_threads([lambda i=i: go_on(i) for i in range(4)])  # type: ignore[misc]
    for i, found in enumerate(together):
        fresh = model.sequence()
        fresh.append([*range(100), *range(i, i + 80)])
        assert found == fresh.logits().tobytes()
    assert len(origin) == 100
    np.testing.assert_array_equal(origin.logits(), before)


def test_one_sequence_in_two_threads_is_an_error_and_no_harm() -> None:
    model = demo()
    sequence = model.sequence()
    ids = [i % 600 for i in range(8000)]
    failures: list[BaseException] = []

    def append() -> None:
        try:
            sequence.append(ids)
        except RuntimeError as error:
            failures.append(error)

    in_threads([append] * 3)
    assert len(failures) == 2
    assert all(str(error).startswith("sequence: it is in use") for error in failures)
    assert len(sequence) == len(ids)


def test_opening_in_threads() -> None:
    models = in_threads([lambda: Model.from_pretrained("demo", threads=1)] * 4)
    texts = {
        model.generate(QUESTIONS[0], temperature=0, enable_thinking=False).text  # type: ignore[attr-defined]
        for model in models
    }
    assert texts == {"coins apples"}


def test_the_tokenizer_is_read_once() -> None:
    model = Model.from_pretrained("demo")
    tokenizers = in_threads([lambda: model.tokenizer] * 6)
    assert isinstance(tokenizers[0], Tokenizer)
    assert all(tokenizer is tokenizers[0] for tokenizer in tokenizers)


PRELUDE = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads
from edgewise import Model

model = Model.from_pretrained("demo", threads={threads})
question = "What is the capital of France?"

def ask():
    return model.generate(question, temperature=0, enable_thinking=False).text

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 3)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(4)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "the child hung"

wanted = "Paris."
assert ask() == wanted
"""

FORKS = {
    "after computing": """
for _ in range(3):
    assert in_child(lambda: ask() == wanted) == 0
assert ask() == wanted
""",
    "with a sequence begun before": """
sequence = model.sequence()
sequence.append(list(range(300)))
logits = model.logits(list(range(300)) + [5])[-1]

def go_on():
    sequence.append([5])
    return (sequence.logits() == logits).all()

assert in_child(go_on) == 0
assert len(sequence) == 300
assert go_on()
""",
    "with another model in the child": """
def other():
    global model
    model = Model.from_pretrained("demo", threads=2)
    return ask() == wanted

assert in_child(other) == 0
""",
    "of a child": """
assert in_child(lambda: ask() == wanted and in_child(lambda: ask() == wanted) == 0) == 0
""",
    "while another thread computes": """
stop = False

def compute():
    while not stop:
        model.sequence().append([i % 600 for i in range(4000)])

thread = threading.Thread(target=compute)
thread.start()
time.sleep(0.3)
codes = [in_child(lambda: ask() == wanted) for _ in range(5)]
stop = True
thread.join()
assert codes == [0] * 5, codes
assert ask() == wanted
""",
    "by multiprocessing": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.starmap(ask, [()] * 4) == [wanted] * 4
""",
}


@posix
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", FORKS)
def test_fork(name: str, threads: int) -> None:
    code = PRELUDE.format(threads=threads) + FORKS[name]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stderr) == (0, "")


SMALL_STACK = """
import threading
import every_bit
threading.stack_size(128 << 10)
done = []

def work():
    for name, dtype, kv_dtype, _ in every_bit.TEXT[:1] + every_bit.TEXT[-4:]:
        done.extend(every_bit.text(name, dtype, kv_dtype, 40))
    done.extend(every_bit.seen(*every_bit.PICTURES[0]))
    done.append("all")

thread = threading.Thread(target=work)
thread.start()
thread.join()
assert done and done[-1] == "all"
"""


def test_a_small_stack() -> None:
    """A Python thread has 128 KiB with musl; what a kernel holds on the stack must leave room there."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STACK], cwd=folder, capture_output=True, text=True, timeout=110
    )
    assert (done.returncode, done.stderr) == (0, "")
