"""Fresh questions about pictures and clips: how many the demo model answers rightly, like the original code.

`tools/vision_reference.py` recorded what the original code says in float32 to 400 questions of each kind,
2800 in all. Int4 weights change 1 % of the answers, to better and to worse: on other questions of these kinds
the loss would come out within 0.4 percentage points of that on these (two standard errors).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from PIL import Image

import golden
from accuracy import CHECKPOINT, RECORDED, Score, equal, media, questions, score, total
from edgewise import Model
from edgewise._native import active_tier
from fresh_questions import KINDS, Question, fingerprint

EVERY = 20 if active_tier() == "portable" else 1
"""One question in so many is asked: without vector instructions all take 15 minutes, for the same bits."""
LOSS = 0.01
CHANGED = 0.02
"""Which part of its answers int4 weights may change; measured: 0.01."""
NEAR_TIES = 3
"""Answers of 2800 that another order of additions may change in float32; measured: none."""


@cache
def original_weights() -> Model:
    return Model.from_pretrained(CHECKPOINT, dtype="f32", threads=2)


@cache
def shipped() -> Model:
    return Model.from_pretrained("demo", threads=2)


@cache
def scores(model: Callable[[], Model]) -> dict[str, Score]:
    return {kind: score(model(), kind, EVERY) for kind in RECORDED}


@pytest.mark.parametrize("kind", list(KINDS))
def test_questions_are_the_recorded_ones(kind: str) -> None:
    """To the pixel: if another Pillow or Python drew otherwise, the tests below would compare nothing."""
    asked, record = questions(kind), RECORDED[kind]
    assert len(asked) == 400
    assert fingerprint(asked) == record["fingerprint"]
    assert record["right"] == equal([question.truth for question in asked], record["answers"])


def test_original_weights_say_what_the_original_code_says() -> None:
    every = total(scores(original_weights).values())
    assert every.asked - every.same <= NEAR_TIES, scores(original_weights)


@pytest.mark.parametrize("group", ["", "image", "video"])
def test_int4_loses_at_most_one_percent(group: str) -> None:
    found = total(score for kind, score in scores(shipped).items() if kind.startswith(group))
    assert found.loss <= LOSS, scores(shipped)


def test_int4_changes_few_answers() -> None:
    every = total(scores(shipped).values())
    assert every.asked - every.same <= CHANGED * every.asked, scores(shipped)


def samples() -> list[Any]:
    return [sample for sample in golden.read_json("demo_samples.json") if sample["kind"] != "text"]


@pytest.mark.parametrize("model", [original_weights, shipped])
@pytest.mark.parametrize("index", range(len(samples())))
def test_pictures_of_the_training(index: int, model: Callable[[], Model]) -> None:
    """Prompt and answer, token by token, also where the original code is wrong."""
    sample = samples()[index]
    question = Question(sample["question"], sample["truth"], recorded_frames(sample))
    prompt = model().prepare(question.text, enable_thinking=False, **media(question))
    assert prompt.token_ids == sample["input_ids"]
    result = model().generate(prompt, temperature=0)
    assert (result.token_ids, result.text) == (sample["greedy"], sample["text"])


def recorded_frames(sample: Any) -> list[Image.Image]:
    pictures = []
    for name in sample.get("files") or [sample["file"]]:
        with Image.open(golden.FOLDER / "demo_samples" / name) as picture:
            pictures.append(picture.convert("RGB"))
    return pictures
