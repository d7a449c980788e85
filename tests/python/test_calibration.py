"""`edgewise quantize --calibrate`: what it splits, writes and prints, and that it pays."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from edgewise import Model, _native, calibration
from edgewise.benchmark.perplexity import measure
from edgewise.cli.main import main

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
NAMES = ["Ada", "Alan", "Barbara", "Claude", "Dennis", "Edsger", "Frances", "Grace"]


def questions(count: int, seed: int) -> str:
    """Questions with answers of the kinds the demo model was trained on, as its template writes them."""
    rng = Random(f"calibration {seed}")
    text = ""
    for _ in range(count):
        facts = [f"{name}'s code is {rng.randint(100, 999)}." for name in rng.sample(NAMES, 4)]
        numbers = rng.sample(range(100), 4)
        listed, ordered = (", ".join(map(str, row)) for row in (numbers, sorted(numbers)))
        for question, answer in [
            (f"{' '.join(facts)} What is {facts[1].split(maxsplit=1)[0]} code?", facts[1]),
            (f"Sort these numbers: {listed}", ordered),
        ]:
            text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            text += f"{answer}<|im_end|>\n"
    return text


@pytest.mark.parametrize(
    ("tokens", "most", "seen", "held_out"),
    [
        (256, 1000, 205, 51),
        (1000, 800, 800, 200),
        (1000, 1, 1, 200),
        (100_000, 1 << 40, 100_000 - 8192, 8192),
    ],
)
def test_the_end_of_the_text_is_held_out(tokens: int, most: int, seen: int, held_out: int) -> None:
    assert calibration.split(range(tokens), most) == (range(seen), range(tokens - held_out, tokens))


def test_texts_and_limits_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"has 255 tokens; at least 256 are needed"):
        calibration.split(range(255))
    with pytest.raises(ValueError, match=r"^calibrate_tokens"):
        calibration.split(range(1000), 0)


def test_calibrated_levels_lose_less_on_text_they_were_not_made_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, file = tmp_path / "text", tmp_path / "model.safetensors"
    text.write_text(questions(60, 1))
    command = ["quantize", str(DEMO), str(file), "--calibrate", str(text), "--calibrate-tokens", "2000"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    found = re.search(r"calibrated (\d+) of (\d+) INT4 tensors on the first 2000 tokens", printed)
    assert found is not None, printed
    # The layer that predicts the token after the next is not run, and the embedding is the head as well.
    assert 20 < int(found[1]) < int(found[2])
    rows = {line.split()[0]: line.split() for line in printed.splitlines()[-3:]}
    plain, calibrated = (float(rows[name][2]) for name in ("plain", "calibrated"))
    assert 0 < calibrated < 0.9 * plain, printed

    # On another text, and with the numbers of the functions that the command is made of.
    exact = Model.from_pretrained(DEMO, dtype="f32")
    other = exact.tokenizer.encode(questions(15, 2))
    losses = [
        measure(model, other, reference=exact).divergence or 0.0
        for model in (Model.from_pretrained(file), Model.from_pretrained(DEMO, dtype="int4"))
    ]
    assert 0 < losses[0] < 0.9 * losses[1], losses
    ids = exact.tokenizer.encode(text.read_text())
    _, held_out = calibration.split(ids)
    score = measure(Model.from_pretrained(file), held_out, reference=exact)
    assert f"{score.perplexity:.4f}" in printed
    assert f"on the last {len(held_out)} tokens, which calibration did not see" in printed


def test_nothing_is_written_if_the_text_is_too_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, file = tmp_path / "text", tmp_path / "model.safetensors"
    text.write_text("Hello!")
    assert main(["quantize", str(DEMO), str(file), "--calibrate", str(text)]) == 1
    assert "at least 256 are needed" in capsys.readouterr().err
    assert main(["quantize", str(DEMO), str(file), "--calibrate", str(tmp_path / "none")]) == 1
    assert not file.exists()


def test_statistics_of_a_text() -> None:
    model = Model.from_pretrained(DEMO, dtype="f32")
    reports: list[tuple[int, int, str]] = []
    statistics = model.input_statistics(range(100), 40, lambda *report: reports.append(report))
    assert statistics.tokens == 100
    assert [done for done, _, _ in reports] == [0, 40, 80]
    with pytest.raises(ValueError, match="window"):
        model.input_statistics([1, 2], 0)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.input_statistics([1 << 30], 8)
    with pytest.raises(TypeError):
        _native.quantize(str(DEMO), "x", statistics=1)  # type: ignore[arg-type]
