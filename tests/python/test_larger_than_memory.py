"""A mixture of experts in half the memory it would fill: slower, and equal to the bit."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import memory_group
from edgewise import _native

TOKENS = 12
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_5_moe_text",
    "vocab_size": 512,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    "num_experts": 128,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    _native.write_random(json.dumps(CONFIG), str(path))
    return path


def run(path: str, prefetch: bool | None, group: memory_group.Group | None, results: Connection) -> None:
    """Read a text token by token, each of which goes to other experts, and send what came of it."""
    if group is not None:
        group.join()
    engine = _native.Engine.open(path, threads=2, prefetch=prefetch)
    sequence = engine.sequence()
    bits = []
    for i in range(TOKENS):
        sequence.append([(7919 * i + 11) % engine.vocab_size])
        bits.append(sequence.logits().tobytes())
    results.send((bits, engine.info()))


def in_child(path: Path, prefetch: bool | None, group: memory_group.Group | None) -> tuple[Any, Any]:
    """Run in a process of its own, whose memory is the model's and little else."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=run, args=(str(path), prefetch, group, sender))
    child.start()
    sender.close()
    try:
        bits, info = receiver.recv()
    finally:
        child.join(timeout=30)
    assert child.exitcode == 0
    return bits, info


def test_twice_the_memory(model: Path) -> None:
    wanted, free = in_child(model, None, None)
    assert not free["prefetch"], "there is memory for all of it"
    assert free["expert_bytes"] > 0.9 * free["weight_bytes"]
    limit = free["file_bytes"] // 2
    for prefetch in [None, False]:
        try:
            with memory_group.limited(limit) as group:
                found, info = in_child(model, prefetch, group)
                peak = group.peak()
        except memory_group.UnavailableError as reason:
            pytest.skip(str(reason))
        assert found == wanted
        assert info["prefetch"] is (prefetch is None), "experts are asked for ahead where memory is short"
        assert peak <= limit


def test_asking_ahead_changes_nothing(model: Path) -> None:
    assert in_child(model, True, None)[0] == in_child(model, False, None)[0]
