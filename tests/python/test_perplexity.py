"""How well a model predicts a text: against the definition, on a model and beside another."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgewise import Model
from edgewise.benchmark import perplexity
from edgewise.cli.main import main

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
TEXT = "What is the capital of France? Repeat: coins apples. Which shape do you see? " * 3


@pytest.fixture(scope="module")
def exact() -> Model:
    return Model.from_pretrained(DEMO, dtype="f32")


@pytest.fixture(scope="module")
def rounded() -> Model:
    return Model.from_pretrained(DEMO, dtype="int4")


def probabilities(model: Model, ids: list[int]) -> np.ndarray:
    logits = model.logits(ids).astype(np.longdouble)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


@pytest.mark.parametrize("window", [2, 7, 40, 512])
def test_the_loss_is_that_of_the_definition(window: int, exact: Model) -> None:
    ids = exact.tokenizer.encode(TEXT)
    losses = []
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        if len(part) > 1:
            chosen = probabilities(exact, part)[np.arange(len(part) - 1), part[1:]]
            losses += (-np.log(chosen)).tolist()
    score = perplexity.measure(exact, ids, window)
    assert score.tokens == len(losses)
    assert score.loss == pytest.approx(float(np.mean(losses)), rel=1e-12)
    assert score.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-12)
    assert (score.divergence, score.agreement) == (None, None)


def test_beside_a_reference(exact: Model, rounded: Model) -> None:
    ids = exact.tokenizer.encode(TEXT)
    score = perplexity.measure(rounded, ids, reference=exact)
    p, q = (probabilities(model, ids[:-1]) for model in (exact, rounded))
    assert score.divergence == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()), rel=1e-9)
    assert score.agreement == (p.argmax(-1) == q.argmax(-1)).mean()
    assert score.divergence is not None
    assert score.divergence > 0
    assert perplexity.measure(exact, ids, reference=exact).divergence == 0


def test_what_was_read_is_reported(exact: Model) -> None:
    ids = exact.tokenizer.encode(TEXT)[:25]
    reports: list[tuple[int, int]] = []
    perplexity.measure(exact, ids, 10, report=lambda *report: reports.append(report))
    assert reports == [(10, 25), (20, 25), (25, 25)]


@pytest.mark.parametrize("ids", [[], [5]])
def test_a_text_too_short(ids: list[int], exact: Model) -> None:
    with pytest.raises(ValueError, match=f"the text has {len(ids)} tokens; at least 2 are needed"):
        perplexity.measure(exact, ids)


@pytest.mark.parametrize("window", [1, 0, 1 << 30])
def test_a_window_out_of_range(window: int, exact: Model) -> None:
    with pytest.raises(ValueError, match=r"^window"):
        perplexity.measure(exact, [1, 2, 3], window)


def test_another_vocabulary(exact: Model) -> None:
    other = Model.from_pretrained(Path(__file__).parents[1] / "golden" / "dense_text", dtype="f32")
    with pytest.raises(ValueError, match=r"^reference: its vocabulary has 512 tokens, the model's 640"):
        perplexity.measure(exact, [1, 2, 3], reference=other)


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exact: Model, rounded: Model
) -> None:
    file = tmp_path / "text"
    file.write_text(TEXT)
    assert main(["perplexity", str(DEMO), str(file), "--dtype", "int4", "--reference", str(DEMO)]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    score = perplexity.measure(rounded, exact.tokenizer.encode(TEXT), reference=exact)
    assert lines["perplexity"] == f"{score.perplexity:.4f}"
    assert lines["divergence"] == f"{score.divergence:.6f} nats a token from the reference"
    assert main(["perplexity", "demo", str(tmp_path / "none")]) == 1
