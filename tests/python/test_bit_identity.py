"""The same logits, bit for bit, on every tier of vector instructions and any number of threads.

Each run is a process of its own: the tier is chosen once, from the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import edgewise
import golden

MODELS = [
    ("demo", "auto", 300),
    (str(golden.FOLDER / "dense_text"), "f32", 150),
    (str(golden.FOLDER / "dense_text"), "bf16", 80),
    (str(golden.FOLDER / "dense_text"), "int8", 80),
    (str(golden.FOLDER / "dense_text_d128"), "int4", 150),
    (str(golden.FOLDER / "dense_text_kv_groups/v2x_untied"), "int4", 80),
    (str(golden.FOLDER / "llama"), "int4", 80),
]

SCRIPT = """
import hashlib, sys
from edgewise import Model

for path, dtype, tokens in {models!r}:
    model = Model.from_pretrained(path, dtype=dtype, threads={threads})
    ids = [(i * 7919 + i * i) % model.vocab_size for i in range(tokens)]
    digest = hashlib.sha256()
    for name, array in sorted(model.trace(ids).items()):
        digest.update(name.encode() + array.tobytes())
    sequence = model.sequence()
    for i in range(0, tokens, 7):
        sequence.append(ids[i : i + 7])
        digest.update(sequence.logits().tobytes())
    sampled = model.generate(ids[:10], temperature=0.8, top_k=20, top_p=0.9, seed=3, max_new_tokens=20)
    print(model.info()["tier"], digest.hexdigest(), sampled.token_ids)
"""


def run(code: str, isa: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "EDGEWISE_ISA"}
    if isa is not None:
        environment["EDGEWISE_ISA"] = isa
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )


@cache
def results(isa: str | None, threads: int) -> tuple[set[str], list[str]]:
    """The tiers that ran, and a digest of everything each model computed."""
    done = run(SCRIPT.format(models=MODELS, threads=threads), isa)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) == len(MODELS)
    return {tier for tier, _ in lines}, [digest for _, digest in lines]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tier", edgewise.tiers())
def test_every_tier_and_number_of_threads(tier: str, threads: int) -> None:
    tiers, digests = results(tier, threads)
    assert tiers == {tier}
    assert digests == results("portable", 1)[1]


@pytest.mark.parametrize("isa", [None, ""])
def test_the_fastest_tier_is_the_default(isa: str | None) -> None:
    tiers, digests = results(isa, 2)
    assert tiers == {edgewise.tiers()[-1]}
    assert digests == results("portable", 1)[1]


@pytest.mark.parametrize(
    "call", ["Model.from_pretrained('demo')", "edgewise._native.active_tier()", "ops.rms_norm(x, x[0])"]
)
def test_an_unknown_tier_is_refused(call: str) -> None:
    code = f"import edgewise, numpy; from edgewise import Model, ops; x = numpy.ones((1, 2), 'f4'); {call}"
    done = run(code, "sse9")
    assert done.returncode == 1
    known = ", ".join(edgewise.tiers())
    message = f"ValueError: EDGEWISE_ISA: 'sse9' is not a tier of this CPU, which has: {known}"
    assert done.stderr.splitlines()[-1] == message
    assert done.stderr.count("Traceback") == 1


def test_a_file_carries_its_bits(tmp_path: Path) -> None:
    """Converted on any tier and with any number of threads, a checkpoint becomes the same file."""
    written = set()
    for tier in edgewise.tiers():
        for threads in (1, 3):
            target = tmp_path / f"{tier}-{threads}.safetensors"
            arguments = str(golden.FOLDER / "dense_text"), str(target), "int4", threads
            code = f"from edgewise import _native; _native.quantize(*{arguments!r})"
            done = run(code, tier)
            assert done.returncode == 0, done.stderr
            written.add(target.read_bytes())
    assert len(written) == 1
