"""Contexts extended through YaRN, by `config.json` and by `yarn_factor`. Numbers: `test_reference.py`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden
from edgewise import CheckpointError, ContextError, Model, _native
from edgewise.cli import main

PLAIN = "dense_text"
CONTEXT = 4096
YARN = "yarn"
YARN_CONTEXT = 4 * 64

IDS = golden.prompt(PLAIN, 2).ids


def stretched(folder: Path, **entries: Any) -> Path:
    """A copy of the plain model with YaRN in its `config.json`."""
    target = folder / "stretched"
    shutil.copytree(golden.FOLDER / PLAIN, target)
    config = golden.read_json(f"{PLAIN}/config.json")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT}
    rope = config["rope_parameters"] | yarn | entries
    (target / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    return target


def quantised(source: Path, folder: Path) -> Path:
    target = folder / f"{source.name}.safetensors"
    _native.quantize(str(source), str(target))
    return target


def test_a_factor_does_what_the_configuration_would(tmp_path: Path) -> None:
    plain = Model.from_pretrained(golden.FOLDER / PLAIN, dtype="f32")
    asked = Model.from_pretrained(golden.FOLDER / PLAIN, dtype="f32", yarn_factor=4)
    said = Model.from_pretrained(stretched(tmp_path), dtype="f32")
    assert plain.context_length == CONTEXT
    assert asked.context_length == said.context_length == 4 * CONTEXT
    np.testing.assert_array_equal(asked.logits(IDS), said.logits(IDS))
    assert np.abs(asked.logits(IDS) - plain.logits(IDS)).max() > 1e-3
    assert asked.config == plain.config


def test_files_of_our_own(tmp_path: Path) -> None:
    plain, said = (quantised(source, tmp_path) for source in (golden.FOLDER / PLAIN, stretched(tmp_path)))
    asked = Model.from_pretrained(plain, yarn_factor=4.0)
    kept = Model.from_pretrained(said)
    assert asked.context_length == kept.context_length == 4 * CONTEXT
    np.testing.assert_array_equal(asked.logits(IDS), kept.logits(IDS))
    with pytest.raises(ValueError, match="yarn_factor: the model has YaRN already"):
        Model.from_pretrained(said, yarn_factor=4.0)


def test_converted_weights_are_kept_for_any_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path))
    models = [
        Model.from_pretrained(golden.FOLDER / PLAIN, dtype="int4", cache=True, yarn_factor=factor)
        for factor in (None, 2, 4)
    ]
    assert [model.context_length for model in models] == [CONTEXT, 2 * CONTEXT, 4 * CONTEXT]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_that_has_yarn_is_not_stretched_twice() -> None:
    message = f"yarn_factor: the model has YaRN already: factor 4, {YARN_CONTEXT} tokens"
    with pytest.raises(ValueError, match=message):
        Model.from_pretrained(golden.FOLDER / YARN, yarn_factor=2)


@pytest.mark.parametrize("factor", [1, 0.5, 0, -4, float("nan"), float("inf"), 1e9])
def test_factors_out_of_range(factor: float) -> None:
    with pytest.raises(ValueError, match=r"^yarn_factor: "):
        Model.from_pretrained(golden.FOLDER / PLAIN, yarn_factor=factor)
    with pytest.raises(ValueError, match=r"^yarn_factor: "):
        _native.Engine.open(str(golden.FOLDER / PLAIN), yarn_factor=factor)


@pytest.mark.parametrize("factor", ["4", True, [4.0]])
def test_what_is_no_factor(factor: Any) -> None:
    with pytest.raises(TypeError, match=r"^yarn_factor: expected a number"):
        Model.from_pretrained(golden.FOLDER / PLAIN, yarn_factor=factor)


def test_the_extended_context_is_usable_up_to_its_end() -> None:
    model = Model.from_pretrained(golden.FOLDER / YARN, dtype="f32")
    assert model.context_length == YARN_CONTEXT
    ids = [i % model.vocab_size for i in range(YARN_CONTEXT)]
    sequence = model.sequence()
    sequence.append(ids)
    assert np.isfinite(sequence.logits()).all()
    with pytest.raises(
        ContextError, match=f"{YARN_CONTEXT + 1} tokens are needed, the limit is {YARN_CONTEXT}"
    ):
        sequence.append([0])
    with pytest.raises(ContextError, match=f"the limit is {YARN_CONTEXT}"):
        model.generate(ids[:250], max_new_tokens=7)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"rope_type": "longrope"},
            r"rope_parameters.rope_type': 'longrope' is not supported; known: default, yarn",
        ),
        ({"factor": 0.5}, r"rope_parameters.factor': must be a number of at least 1"),
        ({"factor": None}, r"rope_parameters.factor': is missing"),
        ({"beta_slow": 33}, r"rope_parameters.beta_fast': 32 is less than beta_slow, 33"),
    ],
)
def test_wrong_entries_are_named(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        Model.from_pretrained(stretched(tmp_path, **entries))


def test_info_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(golden.FOLDER / YARN)]) == 0
    assert f"context     {YARN_CONTEXT} tokens (YaRN, factor 4)" in capsys.readouterr().out
    assert main(["info", str(golden.FOLDER / PLAIN), "--yarn-factor", "2.5"]) == 0
    assert f"context     {5 * CONTEXT // 2} tokens (YaRN, factor 2.5)" in capsys.readouterr().out
    assert main(["info", str(golden.FOLDER / PLAIN), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["model"]
    assert (facts["context_length"], facts["yarn_factor"]) == (CONTEXT, None)
    assert main(["info", str(golden.FOLDER / PLAIN), "--json", "--yarn-factor", "4"]) == 0
    facts = json.loads(capsys.readouterr().out)["model"]
    assert (facts["context_length"], facts["yarn_factor"]) == (4 * CONTEXT, 4.0)
    assert facts["memory_plan"][-1]["tokens"] == 4 * CONTEXT


def test_generate_with_a_factor(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model.from_pretrained("demo", yarn_factor=2)
    wanted = model.generate("What is the capital of France?", temperature=0, enable_thinking=False).text
    argv = ["generate", "demo", "What is the capital of France?", "--temperature", "0", "--no-think"]
    assert main([*argv, "--yarn-factor", "2"]) == 0
    assert capsys.readouterr().out.strip() == wanted
    assert main([*argv, "--yarn-factor", "1"]) == 1
    assert "yarn_factor" in capsys.readouterr().err
