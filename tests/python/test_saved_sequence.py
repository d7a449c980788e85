"""Saved sequences: what a file must be to be read, and that writing is whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import golden
from edgewise import CheckpointError, Model

IDS = [(i * 31 + 7) % 500 for i in range(150)]


@cache
def model(kv_dtype: str = "auto", dtype: str = "int4", name: str = "dense_text") -> Model:
    return Model.from_pretrained(golden.FOLDER / name, dtype=dtype, threads=1, kv_dtype=kv_dtype)  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "text.safetensors"
    sequence = model().sequence()
    sequence.append(IDS)
    sequence.save(path)
    return path


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(head: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_a_file_is_plain_safetensors(saved: Path) -> None:
    config = json.loads((golden.FOLDER / "dense_text" / "config.json").read_text())
    text = config.get("text_config", config)
    with safe_open(saved, "numpy") as file:
        assert file.metadata()["format"] == "edgewise-sequence"
        assert file.metadata()["format_version"] == "2"
        assert file.get_tensor("token_ids").tolist() == IDS
        assert file.get_tensor("layers.0.memory").dtype == np.float32
        heads, group = (
            text["linear_num_key_heads"],
            text["linear_num_value_heads"] // text["linear_num_key_heads"],
        )
        key, value = text["linear_key_head_dim"], text["linear_value_head_dim"]
        # Since the last whole chunk of 8 there are 6 tokens: fades, then a key and a delta of each.
        assert file.get_tensor("layers.0.recent").shape == (heads, 16 * group + 6 * (key + group * value))


def test_it_goes_on_with_the_same_bits(saved: Path) -> None:
    again = model().load_sequence(saved)
    assert again.token_ids == IDS
    again.append([1, 2, 3])
    fresh = model()._engine.sequence()
    fresh.append([*IDS, 1, 2, 3])
    np.testing.assert_array_equal(again.logits(), fresh.logits())


def test_in_another_process(saved: Path) -> None:
    code = f"""
from edgewise import Model
model = Model.from_pretrained({str(golden.FOLDER / "dense_text")!r}, dtype="int4", threads=2)
sequence = model.load_sequence({str(saved)!r})
sequence.append([1])
print(sequence.logits().tobytes().hex())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    fresh = model()._engine.sequence()
    fresh.append([*IDS, 1])
    assert done.stdout.strip() == fresh.logits().tobytes().hex()


def test_nothing_read_yet(tmp_path: Path) -> None:
    model().sequence().save(tmp_path / "empty")
    again = model().load_sequence(tmp_path / "empty")
    assert len(again) == 0
    again.append(IDS)
    fresh = model()._engine.sequence()
    fresh.append(IDS)
    np.testing.assert_array_equal(again.logits(), fresh.logits())


@pytest.mark.parametrize(
    "other",
    [
        lambda: model(kv_dtype="int8"),
        lambda: model(dtype="int8"),
        lambda: model(name="dense_text_d128"),
        lambda: Model.from_pretrained("demo"),
    ],
    ids=["kv_dtype", "dtype", "other weights", "demo"],
)
def test_another_model(saved: Path, other: Callable[[], Model]) -> None:
    with pytest.raises(CheckpointError, match=r"text\.safetensors: was saved with another model"):
        other().load_sequence(saved)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        model().load_sequence(tmp_path / "missing")


def test_a_folder_is_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a regular file"):
        model().sequence().save(tmp_path)
    with pytest.raises(FileNotFoundError):
        model().sequence().save(tmp_path / "none" / "text")
    assert list(tmp_path.iterdir()) == []


def test_cut_short_anywhere(saved: Path) -> None:
    data = saved.read_bytes()
    for length in [*range(0, 200, 9), *range(0, len(data), len(data) // 50), len(data) - 1]:
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"text\.safetensors"):
            model().load_sequence(saved)


def test_any_byte_of_the_tensors_changed(saved: Path) -> None:
    head, body = header(saved.read_bytes())
    for place in range(0, len(body), len(body) // 60):
        changed = bytearray(body)
        changed[place] ^= 0x10
        saved.write_bytes(joined(head, bytes(changed)))
        with pytest.raises(CheckpointError, match=r"is damaged|outside the vocabulary"):
            model().load_sequence(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.pop("format"), "is not a saved sequence"),
        (lambda meta: meta.update(format="edgewise"), "is not a saved sequence"),
        (lambda meta: meta.update(format_version="1"), "has format_version '1', this version .* reads '2'"),
        (lambda meta: meta.update(fingerprint="0" * 32), "was saved with another model"),
        (lambda meta: meta.update(tokens="many"), "'tokens' in its metadata is not a number"),
        (lambda meta: meta.update(tokens="149"), "token_ids"),
        (lambda meta: meta.pop("tokens"), "has no 'tokens'"),
        (lambda meta: meta.update(media="[1]"), "'media' in its metadata"),
        (lambda meta: meta.update(media="["), "'media' in its metadata"),
        (
            lambda meta: meta.update(media='[{"start":0,"rows":2,"columns":2,"digest":"00"}]'),
            "no vision tower",
        ),
        (lambda meta: meta.update(checksum="0" * 32), "is damaged"),
    ],
)
def test_metadata_that_is_wrong(saved: Path, change: Callable[[dict[str, str]], Any], message: str) -> None:
    head, body = header(saved.read_bytes())
    change(head["__metadata__"])
    saved.write_bytes(joined(head, body))
    with pytest.raises(CheckpointError, match=message):
        model().load_sequence(saved)


def test_a_tensor_is_missing_or_of_another_shape(saved: Path) -> None:
    data = saved.read_bytes()
    for name in [name for name in header(data)[0] if name != "__metadata__"]:
        head, body = header(data)
        head[f"{name}x"] = head.pop(name)
        saved.write_bytes(joined(head, body))
        with pytest.raises(CheckpointError, match=f"tensor '{name}': is missing"):
            model().load_sequence(saved)
        head, body = header(data)
        head[name]["shape"] = [1, *head[name]["shape"]]
        saved.write_bytes(joined(head, body))
        with pytest.raises(CheckpointError, match=f"tensor '{name}': is .* expected"):
            model().load_sequence(saved)


def test_more_tokens_than_the_context(saved: Path) -> None:
    head, body = header(saved.read_bytes())
    head["__metadata__"]["tokens"] = str(2**63)
    saved.write_bytes(joined(head, body))
    with pytest.raises(ValueError, match="context is full"):
        model().load_sequence(saved)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_while_saving(tmp_path: Path) -> None:
    """The file is the old one or the new one, each whole, whenever the process is killed."""
    path = tmp_path / "text.safetensors"
    code = f"""
from edgewise import Model
model = Model.from_pretrained({str(golden.FOLDER / "dense_text")!r}, dtype="int4", threads=1)
sequence = model.sequence()
sequence.append([7])
sequence.save({str(path)!r})
print("ready", flush=True)
while True:
    sequence.append([len(sequence) % 500])
    sequence.save({str(path)!r})
"""
    for delay in (0.0, 0.003, 0.01, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        found = model().load_sequence(path)
        assert found.token_ids == [7, *(i % 500 for i in range(1, len(found)))]
