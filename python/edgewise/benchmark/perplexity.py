"""How well a model predicts a text, and how far its predictions are from those of another.

A text is cut into windows of equal length, each read on its own, and every token but a window's first is
predicted from those before it in its window. So numbers of the same text and window compare, others do not:
longer windows give lower perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.checks import Range
from edgewise.model import Model

WINDOW = 512
"""Tokens of a window: with a vocabulary of 248,320 their logits take 0.5 GB."""
_ROWS = 32
"""Rows of logits worked on at once in float64."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Score:
    """What came out over all predicted tokens."""

    tokens: int
    """How many were predicted."""
    loss: float
    """Mean negative log-likelihood of the text's tokens, in nats."""
    divergence: float | None = None
    """Mean Kullback-Leibler divergence from the reference's predictions to the model's, in nats."""
    agreement: float | None = None
    """The part of all places where both have the same likeliest token."""

    @property
    def perplexity(self) -> float:
        """The number of equally likely tokens that would be as hard to guess."""
        return math.exp(self.loss)


def measure(
    model: Model,
    ids: Sequence[int],
    window: int = WINDOW,
    reference: Model | None = None,
    report: Report | None = None,
) -> Score:
    """Return how well `model` predicts the tokens `ids`.

    Args:
        model: what is measured.
        ids: the text.
        window: tokens read together; what is left at the end is a shorter window.
        reference: what its predictions are compared with; a model of the same vocabulary.
        report: called with (tokens read, tokens in all).

    Raises:
        ValueError: if there are fewer than two tokens, the window is too small or above the context, or the
            vocabularies differ.

    >>> from edgewise import Model
    >>> from edgewise.benchmark.perplexity import measure
    >>> model = Model.from_pretrained("demo")
    >>> score = measure(model, model.tokenizer.encode("What is the capital of France?"), reference=model)
    >>> score.tokens, score.divergence, score.agreement
    (8, 0.0, 1.0)
    """
    window = int(Range(int, 2, model.context_length).check("window", window))
    if len(ids) < 2:
        raise ValueError(
            f"the text has {len(ids)} tokens; at least 2 are needed, one to predict another from"
        )
    if reference is not None and reference.vocab_size != model.vocab_size:
        raise ValueError(
            f"reference: its vocabulary has {reference.vocab_size} tokens, the model's {model.vocab_size}"
        )
    loss = divergence = same = 0.0
    tokens = 0
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        if len(part) > 1:
            found = model.logits(part[:-1])
            wanted = reference.logits(part[:-1]) if reference is not None else None
            next_ids = np.asarray(part[1:])
            for first in range(0, len(next_ids), _ROWS):
                rows = slice(first, first + _ROWS)
                log_p = _log_softmax(found[rows])
                loss -= float(log_p[np.arange(len(log_p)), next_ids[rows]].sum())
                if wanted is not None:
                    divergence += float(_divergence(_log_softmax(wanted[rows]), log_p))
                    same += int((wanted[rows].argmax(-1) == found[rows].argmax(-1)).sum())
            tokens += len(next_ids)
        if report is not None:
            report(start + len(part), len(ids))
    if reference is None:
        return Score(tokens, loss / tokens)
    return Score(tokens, loss / tokens, divergence / tokens, same / tokens)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[rows, vocab] to log-probabilities."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> np.float64:
    """Sum over rows of KL(p || q)."""
    return np.float64((np.exp(log_p) * (log_p - log_q)).sum())
