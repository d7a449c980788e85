"""How many fresh questions are answered exactly, kind by kind."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3_5ForConditionalGeneration

from demo.batch import Batch, collate, predict
from demo.data import MEDIA, Sample, ask
from demo.mtp import MtpHead


@dataclass
class Score:
    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    mtp_pairs: int = 0
    mtp_agreed: int = 0

    def table(self) -> str:
        """A row per kind of question, then the MTP head's agreement with the model."""
        lines = ["| question | right | asked |", "|---|---|---|"]
        for kind in sorted(self.asked):
            lines.append(f"| {kind} | {self.right[kind] / self.asked[kind]:.0%} | {self.asked[kind]} |")
        agreement = self.mtp_agreed / max(1, self.mtp_pairs)
        lines.append(f"| MTP head: the model's own next token but one | {agreement:.0%} | {self.mtp_pairs} |")
        return "\n".join(lines)


def count(score: Score, samples: list[Sample], batch: Batch, chosen: Tensor, ahead: Tensor) -> None:
    """Add a batch: `chosen` and `ahead` are the tokens that model and MTP head predict for each answer token.

    Fed with the true answer, greedy decoding gives that answer exactly if each chosen token is the true one.
    Only then has the MTP head seen the model's own tokens; the first token of an answer has no pair in it.
    """
    rows = batch.answer.sum(dim=1).tolist()
    targets = batch.ids[batch.answer].split(rows)
    for sample, want, got, mtp in zip(samples, targets, chosen.split(rows), ahead.split(rows), strict=True):
        score.asked[sample.kind] += 1
        if torch.equal(want, got):
            score.right[sample.kind] += 1
            score.mtp_pairs += len(got) - 1
            score.mtp_agreed += int((got[1:] == mtp[1:]).sum())


@torch.no_grad()
def evaluate(
    model: Qwen3_5ForConditionalGeneration, mtp: MtpHead, tokenizer: Tokenizer, questions: int, seed: int
) -> Score:
    """Ask `questions` of each medium, drawn apart from those of the training."""
    rng = Random(f"evaluation {seed}")
    score = Score()
    for medium in MEDIA:
        for first in range(0, questions, 32):
            samples = [ask(medium, rng) for _ in range(min(32, questions - first))]
            batch = collate(tokenizer, samples)
            got = predict(model, mtp, batch)
            count(score, samples, batch, got.logits.argmax(-1), got.mtp_logits.argmax(-1))
    return score
