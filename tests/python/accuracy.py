"""How many fresh questions a model answers rightly, beside the recorded answers of the original code."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import golden
from edgewise import Model
from edgewise.demo.drawing import FRAMES_PER_SECOND
from fresh_questions import Question, ask

CHECKPOINT = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
RECORDED: dict[str, Any] = golden.read_json("demo_accuracy.json")["kinds"]
"""By kind: `answers`, how many are `right`, and the questions' `fingerprint`."""


@dataclass(frozen=True)
class Score:
    """Of the questions asked, how many a model and the original code answered rightly, and how many alike."""

    asked: int
    right: int
    reference: int
    same: int

    @property
    def loss(self) -> float:
        return (self.reference - self.right) / self.asked


def questions(kind: str) -> list[Question]:
    """All recorded questions of a kind."""
    return [ask(kind, index) for index in range(len(RECORDED[kind]["answers"]))]


def media(question: Question) -> dict[str, Any]:
    """The picture or clip as arguments of `Model.generate`."""
    if len(question.frames) == 1:
        return {"images": question.frames}
    return {"videos": [question.frames], "source_fps": FRAMES_PER_SECOND}


def score(model: Model, kind: str, every: int = 1) -> Score:
    """Ask all questions of a kind, or one in so many, taking the likeliest token each time."""
    asked, recorded = questions(kind)[::every], RECORDED[kind]["answers"][::every]
    answers = [
        model.generate(question.text, temperature=0, enable_thinking=False, **media(question)).text
        for question in asked
    ]
    truths = [question.truth for question in asked]
    return Score(len(asked), equal(answers, truths), equal(recorded, truths), equal(answers, recorded))


def equal(some: Sequence[str], others: Sequence[str]) -> int:
    """How many texts are the same in both."""
    return sum(map(str.__eq__, some, others))


def total(scores: Iterable[Score]) -> Score:
    fields = ((score.asked, score.right, score.reference, score.same) for score in scores)
    return Score(*map(sum, zip(*fields, strict=True)))
