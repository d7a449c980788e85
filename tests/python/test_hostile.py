"""Checkpoints that are broken or meant to do harm: one clear exception each, naming the file and the place.

Every case is a change to a good folder or file. All cases also run in one fresh process with little memory,
which must survive them.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import golden
from edgewise import CheckpointError, Model, NonFiniteError, _native

GOOD = golden.FOLDER / "dense_text"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.3.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
DECAY = "model.layers.0.linear_attn.in_proj_a.weight"

Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """A change that makes a good checkpoint bad, and what must be said of it."""

    name: str
    change: Change
    """Gets the folder (or the file of our own); may return another path to open."""
    names: tuple[str, ...]
    """What the message must contain."""
    error: type[Exception] = CheckpointError
    dtype: str = "f32"


def header_and_data(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(file: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def header(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the header of the weights' file, or replace it if the edit returns something."""

    def change(path: Path) -> None:
        file = path / WEIGHTS if path.is_dir() else path
        head, data = header_and_data(file)
        write(file, edit(head) or head, data)

    return change


def tensors(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """Write the weights anew after an edit of the arrays."""

    def change(path: Path) -> None:
        arrays = load_file(path / WEIGHTS)
        edit(arrays)
        save_file(arrays, path / WEIGHTS)

    return change


def number(name: str, place: tuple[int, ...], value: float) -> Change:
    def edit(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value

    return tensors(edit)


def config(**entries: Any) -> Change:
    def change(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(path: Path) -> None:
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(size: int) -> Change:
    def change(path: Path) -> None:
        with (path / WEIGHTS if path.is_dir() else path).open("r+b") as file:
            file.truncate(size)

    return change


def remove(name: str) -> Change:
    return lambda path: (path / name).unlink()


def as_folder(name: str) -> Change:
    def change(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).mkdir()

    return change


def shards(weight_map: Any, *, keep: bool = True) -> Change:
    """Make the file the only shard of an index; `weight_map` is updated with the entries given."""

    def change(path: Path) -> None:
        arrays = load_file(path / WEIGHTS)
        (path / WEIGHTS).rename(path / "shard.safetensors")
        entries = dict.fromkeys(arrays, "shard.safetensors") if keep else {}
        whole = {"weight_map": entries | weight_map} if isinstance(weight_map, dict) else weight_map
        (path / INDEX).write_text(json.dumps(whole))

    return change


def several(*changes: Change) -> Change:
    def change(path: Path) -> None:
        for one in changes:
            one(path)

    return change


def offsets(name: str, begin: int, end: int) -> Change:
    return header(lambda head: head[name].update(data_offsets=[begin, end]))


def duplicate_key(path: Path) -> None:
    file = path / "config.json"
    file.write_text(file.read_text().replace('"vocab_size"', '"vocab_size": 7, "vocab_size"'))


def length_word(value: int) -> Change:
    def change(path: Path) -> None:
        with (path / WEIGHTS).open("r+b") as file:
            file.write(struct.pack("<Q", value))

    return change


def other_layers(kind: str, **entries: Any) -> Change:
    """All layers of one kind, by name only: the tensors stay those of the other."""
    return config(layer_types=[kind] * 8, **entries)


def empty_folder(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def huge(*shape: int) -> Change:
    """Claim a shape for a tensor without bytes."""
    return header(lambda head: head[QUERY].update(shape=list(shape)))


def tokenizer(edit: Callable[[dict[str, Any]], Any]) -> Change:
    def change(path: Path) -> None:
        content = json.loads((golden.FOLDER / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
        edit(content)
        (path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    return change


HUGE = 1 << 24
DEEP = "[" * 100_000

FOLDER_CASES = [
    # The container.
    Case("empty file", cut(0), (WEIGHTS, "is empty")),
    Case("truncated length", cut(5), (WEIGHTS, "5 bytes")),
    Case("truncated header", cut(100), (WEIGHTS, "reaches beyond")),
    Case("truncated data", cut(200_000), (WEIGHTS, "tensor '")),
    Case("header of 2^63 bytes", length_word(1 << 63), (WEIGHTS, "header length 9223372036854775808")),
    Case("header of all ones", length_word((1 << 64) - 1), (WEIGHTS, "header length 18446744073709551615")),
    Case("header of 90 MB", length_word(90_000_000), (WEIGHTS, "header length 90000000")),
    Case("header of nothing", length_word(0), (WEIGHTS, "header does not begin")),
    Case("header is no JSON", header(lambda _: b"{nonsense"), (WEIGHTS, "header")),
    Case("header is no text", header(lambda _: b"{\xff\xfe}"), (WEIGHTS, "UTF-8")),
    Case("header is a list", header(lambda _: b"[1, 2]"), (WEIGHTS, "header does not begin")),
    Case("header without end", header(lambda _: b'{"a":' + DEEP.encode()), (WEIGHTS, "'a'")),
    Case("header of no tensors", header(lambda _: {"__metadata__": {}}), (WEIGHTS, "its tensors cover 0")),
    Case("a web page", text(WEIGHTS, b"<!DOCTYPE html>" * 100), (WEIGHTS, "web page")),
    Case(
        "a Git LFS pointer", text(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), ("git lfs pull",)
    ),
    Case("end beyond the file", offsets(QUERY, 0, 1 << 40), (WEIGHTS, QUERY)),
    Case("offsets of 2^63", offsets(QUERY, (1 << 63) - 1, 1 << 63), (WEIGHTS, QUERY)),
    Case("end before begin", offsets(QUERY, 4096, 0), (WEIGHTS, QUERY)),
    Case("negative offset", header(lambda h: h[QUERY].update(data_offsets=[-4, 0])), (WEIGHTS, QUERY)),
    Case(
        "overlapping tensors",
        header(lambda h: h[QUERY].update(data_offsets=h[DOWN]["data_offsets"], shape=h[DOWN]["shape"])),
        (WEIGHTS, "overlaps"),
    ),
    Case("a hole", header(lambda h: h.pop(DOWN) and None), (WEIGHTS, "leaves a hole before it")),
    Case(
        "data behind the tensors",
        lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes() + b"more"),
        (WEIGHTS, "cover"),
    ),
    Case("shape of other size", huge(1, 2), (WEIGHTS, QUERY)),
    Case("shape that overflows", huge(1 << 62, 1 << 62), (WEIGHTS, QUERY)),
    Case("shape that wraps to nothing", huge(1 << 32, 1 << 32), (WEIGHTS, QUERY)),
    Case("negative shape", huge(-1, 64), (WEIGHTS, QUERY)),
    Case("too many dimensions", huge(*[1] * 100), (WEIGHTS, QUERY)),
    Case("unknown type", header(lambda h: h[QUERY].update(dtype="Q7")), (WEIGHTS, QUERY, "Q7")),
    # Tensors.
    Case("missing tensor", tensors(lambda a: a.pop(QUERY)), (WEIGHTS, QUERY, "is missing")),
    Case("missing embedding", tensors(lambda a: a.pop(EMBEDDING)), ("embed_tokens",)),
    Case(
        "missing head", tensors(lambda a: a.pop("lm_head.weight")), (WEIGHTS, "lm_head.weight", "is missing")
    ),
    Case(
        "transposed tensor",
        tensors(lambda a: a.update({DOWN: a[DOWN].T.copy()})),
        (WEIGHTS, DOWN, "[128, 64]"),
    ),
    Case("tensor of integers", tensors(lambda a: a.update({DOWN: a[DOWN].astype(np.int32)})), (DOWN, "I32")),
    Case("tensor of doubles", tensors(lambda a: a.update({DOWN: a[DOWN].astype(np.float64)})), (DOWN, "F64")),
    Case(
        "vector of one number",
        tensors(lambda a: a.update({"model.norm.weight": np.ones(1, "f4")})),
        ("model.norm",),
    ),
    Case(
        "NaN in a vector",
        number("model.norm.weight", (5,), np.nan),
        (WEIGHTS, "model.norm.weight", "element 5"),
    ),
    Case(
        "infinity in A_log",
        number("model.layers.0.linear_attn.A_log", (1,), np.inf),
        (WEIGHTS, "model.layers.0.linear_attn.A_log", "element 1"),
    ),
    Case("NaN in a matrix", number(DOWN, (3, 70), np.nan), ("layers.1.mlp.down_proj",), NonFiniteError),
    Case("infinity in a matrix", number(DOWN, (3, 70), np.inf), ("layers.1.mlp.down_proj",), NonFiniteError),
    Case("NaN as bfloat16", number(DOWN, (3, 70), np.nan), (WEIGHTS, DOWN, "row 3, column 70"), dtype="bf16"),
    Case("NaN to be INT4", number(DOWN, (3, 70), np.nan), (WEIGHTS, DOWN, "row 3, column 70"), dtype="int4"),
    Case("NaN to be INT8", number(DOWN, (3, 70), -np.inf), (WEIGHTS, DOWN, "row 3, column 70"), dtype="int8"),
    Case("too large for INT4", number(DOWN, (3, 70), 1e30), (WEIGHTS, DOWN, "too large"), dtype="int4"),
    Case(
        "activations that overflow",
        tensors(lambda a: a.update({DOWN: np.full_like(a[DOWN], 3e38), QUERY: a[QUERY] * 1e30})),
        ("overflow",),
        NonFiniteError,
    ),
    # The index.
    Case("cyclic index", shards({EMBEDDING: INDEX}), (INDEX, EMBEDDING, "is an index")),
    Case(
        "index that leaves the folder",
        shards({EMBEDDING: "../shard.safetensors"}),
        (INDEX, EMBEDDING, "plain"),
    ),
    Case("index with an absolute path", shards({EMBEDDING: "/etc/passwd"}), (INDEX, EMBEDDING, "plain")),
    Case("missing shard", shards({EMBEDDING: "none.safetensors"}), (INDEX, EMBEDDING, "none.safetensors")),
    Case(
        "tensor not in its shard",
        shards({"model.none": "shard.safetensors"}),
        ("shard.safetensors", "model.none"),
    ),
    Case("empty index", shards({}, keep=False), (INDEX, "empty")),
    Case("index is no object", shards([1]), (INDEX,)),
    Case("index of numbers", shards({EMBEDDING: 5}), (INDEX,)),
    Case("shard is a folder", several(shards({EMBEDDING: "sub"}), as_folder("sub")), ("sub", "is a folder")),
    # The configuration.
    Case("no configuration", remove("config.json"), ("config.json",)),
    Case("configuration is a folder", as_folder("config.json"), ("config.json", "is a folder")),
    Case("configuration is empty", text("config.json", ""), ("config.json",)),
    Case("configuration is no JSON", text("config.json", "{"), ("config.json",)),
    Case("configuration is no text", text("config.json", b"\xff{}"), ("config.json",)),
    Case("configuration is a list", text("config.json", "[]"), ("config.json",)),
    Case("configuration without end", text("config.json", DEEP), ("config.json",)),
    Case("configuration of 5 MB", text("config.json", " " * 5_000_000), ("config.json",)),
    Case("entry given twice", duplicate_key, ("config.json", "vocab_size")),
    Case("unknown model", config(model_type="mamba"), ("config.json", "model_type", "mamba")),
    Case("model without name", config(model_type=None), ("config.json", "model_type")),
    Case("no layers", config(num_hidden_layers=0), ("config.json", "num_hidden_layers")),
    Case("layers of other number", config(num_hidden_layers=9), ("config.json", "layer_types", "9 layers")),
    Case("a billion layers", config(num_hidden_layers=10**9, layer_types=None), ("num_hidden_layers",)),
    Case("unknown layer", config(layer_types=["mamba"] * 8), ("config.json", "layer_types[0]", "mamba")),
    Case("hidden size as text", config(hidden_size="64"), ("config.json", "hidden_size")),
    Case("negative hidden size", config(hidden_size=-64), ("config.json", "hidden_size")),
    Case("hidden size of 2^64", config(hidden_size=1 << 64), ("config.json", "hidden_size")),
    Case("half a hidden size", config(hidden_size=64.5), ("config.json", "hidden_size")),
    Case("another hidden size", config(hidden_size=128), (WEIGHTS, EMBEDDING, "[512, 128]")),
    Case("vocabulary of another size", config(vocab_size=513), (WEIGHTS, EMBEDDING, "[513, 64]")),
    Case("huge vocabulary", config(vocab_size=HUGE), (WEIGHTS, EMBEDDING)),
    Case("huge feed-forward", config(intermediate_size=HUGE), (WEIGHTS, "mlp.gate_proj")),
    Case("huge everything", config(hidden_size=HUGE, vocab_size=HUGE, intermediate_size=HUGE), (EMBEDDING,)),
    Case(
        "huge delta heads", config(linear_num_key_heads=1 << 19, linear_num_value_heads=1 << 19), ("linear_",)
    ),
    Case("huge attention heads", config(num_attention_heads=1 << 18), (WEIGHTS, "q_proj")),
    Case("wide attention heads", config(head_dim=1 << 12), ("config.json", "head_dim")),
    Case("heads that do not divide", config(num_key_value_heads=3), ("config.json", "num_attention_heads")),
    Case("no context", config(max_position_embeddings=0), ("config.json", "max_position_embeddings")),
    Case("norm of negative epsilon", config(rms_norm_eps=-1), ("config.json", "rms_norm_eps")),
    Case("layers of the other kind", other_layers("full_attention"), (WEIGHTS, "self_attn")),
    Case(
        "weights of another program",
        config(quantization_config={"quant_method": "hqq"}),
        ("config.json", "hqq"),
    ),
    # Side files.
    Case("tokenizer is no JSON", text("tokenizer.json", "{"), ("tokenizer.json",)),
    Case("tokenizer is no text", text("tokenizer.json", b"\xff"), ("tokenizer.json", "UTF-8")),
    Case("tokenizer of nothing", text("tokenizer.json", "{}"), ("tokenizer.json",)),
    Case("tokenizer is a folder", as_folder("tokenizer.json"), ("tokenizer.json", "is a folder")),
    Case(
        "tokenizer beyond the vocabulary", tokenizer(lambda _: None), ("tokenizer.json", "vocabulary of 512")
    ),
    Case("tokenizer without a model", tokenizer(lambda t: t.pop("model")), ("tokenizer.json",)),
    Case(
        "template is no template", text("chat_template.jinja", "{% for %}"), ("chat_template.jinja", "line 1")
    ),
    Case("template is no text", text("chat_template.jinja", b"\xff"), ("chat_template.jinja", "UTF-8")),
    Case("template without end", text("chat_template.jinja", "{{" + "(" * 50_000), ("chat_template.jinja",)),
    Case("settings are no JSON", text("generation_config.json", "{"), ("generation_config.json",)),
    Case("settings are a list", text("generation_config.json", "[]"), ("generation_config.json",)),
    Case(
        "settings out of range",
        text("generation_config.json", '{"top_p": 7}'),
        ("generation_config.json", "top_p"),
    ),
    Case("tokenizer settings are no JSON", text("tokenizer_config.json", "nope"), ("tokenizer_config.json",)),
    # The path.
    Case("nothing there", lambda path: path / "none", ("none",), FileNotFoundError),
    Case("empty folder", empty_folder, ("empty", "holds no model")),
    Case("weights are a folder", as_folder(WEIGHTS), (WEIGHTS, "is a folder")),
    Case("a text as weights", lambda path: path / "config.json", ("config.json",)),
    Case(
        "dangling link",
        several(remove(WEIGHTS), lambda p: (p / WEIGHTS).symlink_to("x")),
        (WEIGHTS,),
        FileNotFoundError,
    ),
    Case("a device", lambda _: Path("/dev/zero"), ("/dev/zero", "device")),
]


def metadata(**entries: Any) -> Change:
    def edit(head: dict[str, Any]) -> None:
        for key, value in entries.items():
            if value is None:
                del head["__metadata__"][key]
            else:
                head["__metadata__"][key] = value

    return header(edit)


def table(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the list of block tensors in a file of our own."""

    def change(head: dict[str, Any]) -> None:
        entries = json.loads(head["__metadata__"]["tensors"])
        edit(entries)
        head["__metadata__"]["tensors"] = json.dumps(entries)

    return header(change)


def scale(value: float) -> Change:
    """Set the last scale of a tensor of INT8 blocks."""
    return ending(DECAY, np.float16(value).tobytes())


def unit(value: float) -> Change:
    """Set the last unit of a tensor of INT4 blocks."""
    return ending(QUERY, np.float32(value).tobytes())


def ending(name: str, end_bytes: bytes) -> Change:
    def change(path: Path) -> None:
        head, data = header_and_data(path)
        end = head[name]["data_offsets"][1]
        write(path, head, data[: end - len(end_bytes)] + end_bytes + data[end:])

    return change


FILE_CASES = [
    Case("truncated", cut(60_000), ("tensor '",)),
    Case("version 2", metadata(format_version="2"), ("format_version '2'", "reads '1'")),
    Case("no version", metadata(format_version=None), ("format_version",)),
    Case("no table", metadata(tensors=None), ("'tensors'", "is missing")),
    Case("table is no JSON", metadata(tensors="{"), ("'tensors'",)),
    Case("table is a list", metadata(tensors="[]"), ("'tensors'",)),
    Case("table without end", metadata(tensors=DEEP), ("'tensors'",)),
    Case("unknown format", table(lambda t: t[QUERY].update(format="int3")), (QUERY, "int3")),
    Case("format of another size", table(lambda t: t[QUERY].update(format="int8")), (QUERY, "int8")),
    Case("another shape", table(lambda t: t[QUERY].update(shape=[256, 96])), (QUERY, "[256, 96]")),
    Case(
        "shape that fits the same blocks",
        table(lambda t: t[QUERY].update(shape=[255, 64])),
        (QUERY, "[255, 64]"),
    ),
    Case("shape that overflows", table(lambda t: t[QUERY].update(shape=[1 << 63, 1 << 63])), (QUERY,)),
    Case("blocks that nobody lists", table(lambda t: t.pop(QUERY)), (QUERY,)),
    Case("table with more than is known", table(lambda t: t[QUERY].update(more=1)), ("'tensors'", "more")),
    Case("a scale of NaN", scale(np.nan), (DECAY, "scale")),
    Case("an infinite scale", scale(-np.inf), (DECAY, "scale")),
    Case("a unit of NaN", unit(np.nan), (QUERY, "unit")),
    Case("an infinite unit", unit(-np.inf), (QUERY, "unit")),
    Case(
        "no configuration inside",
        header(lambda h: h.update({"x": h.pop("edgewise.files/config.json")})),
        ("config.json",),
    ),
]


@cache
def converted(folder: Path) -> Path:
    file = folder / "good.safetensors"
    _native.quantize(str(GOOD), str(file), "int4")
    return file


def prepared(case: Case, folder: Path, good: Path) -> Path:
    """A changed copy of the good checkpoint."""
    if good.is_dir():
        target = folder / "model"
        target.mkdir()
        for name in ("config.json", WEIGHTS):
            shutil.copy(good / name, target / name)
    else:
        target = folder / "own.safetensors"
        shutil.copy(good, target)
    other = case.change(target)
    return other if isinstance(other, Path) else target


def use(path: Path, dtype: str) -> None:
    """Everything a user does with a checkpoint, up to the first token."""
    model = Model.from_pretrained(path, dtype=dtype, threads=1)  # type: ignore[arg-type]
    if (path / "tokenizer.json").exists():
        len(model.tokenizer)
    model.generate([1, 2, 3], max_new_tokens=1)


def check(case: Case, path: Path, dtype: str) -> str | None:
    """What is wrong with the exception, None if it is as it should be."""
    begin = time.monotonic()
    try:
        use(path, dtype)
    except case.error as error:
        message, kind = str(error), type(error)
        alone = error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
    except BaseException as error:
        return f"{case.name}: {error!r} instead of {case.error.__name__}"
    else:
        return f"{case.name}: no exception"
    faults = [f"does not name {name!r}" for name in case.names if name not in message]
    if kind is not case.error:
        faults.append(f"is a {kind.__name__}")
    if "\n" in message or len(message) > 1000:
        faults.append("is not one line")
    if not alone:
        faults.append("brings another exception along")
    if time.monotonic() - begin > 10:
        faults.append("took more than 10 seconds")
    return f"{case.name}: {message[:1000]!r}: {', '.join(faults)}" if faults else None


def by_name(case: Case) -> str:
    return case.name


@pytest.fixture(scope="module")
def own_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("good"))


def test_the_good_ones_are_good(own_file: Path) -> None:
    use(GOOD, "f32")
    use(GOOD, "int4")
    use(own_file, "auto")
    use(own_file, "f32")


@pytest.mark.parametrize("case", FOLDER_CASES, ids=by_name)
def test_folder(case: Case, tmp_path: Path) -> None:
    assert check(case, prepared(case, tmp_path, GOOD), case.dtype) is None


@pytest.mark.parametrize("dtype", ["auto", "f32"])
@pytest.mark.parametrize("case", FILE_CASES, ids=by_name)
def test_own_file(case: Case, dtype: str, own_file: Path, tmp_path: Path) -> None:
    assert check(case, prepared(case, tmp_path, own_file), dtype) is None


@pytest.mark.parametrize("case", FOLDER_CASES, ids=by_name)
def test_conversion_leaves_nothing_half_written(case: Case, tmp_path: Path) -> None:
    """Converting does not look at all that opening needs; if it fails, then with one clear exception too."""
    path = prepared(case, tmp_path, GOOD)
    target = tmp_path / "out" / "file.safetensors"
    target.parent.mkdir()
    try:
        _native.quantize(str(path), str(target), "int4")
    except (CheckpointError, OSError):
        assert list(target.parent.iterdir()) == []
    else:
        assert list(target.parent.iterdir()) == [target]


def test_sizes_that_no_tensor_vouches_for_take_no_memory(tmp_path: Path) -> None:
    """A model without attention layers may claim anything about attention."""
    arrays = load_file(GOOD / WEIGHTS)
    kept = {
        name: array
        for name, array in arrays.items()
        if not name.startswith("model.layers.") or name.startswith(("model.layers.0.", "model.layers.1."))
    }
    save_file(kept, tmp_path / WEIGHTS)
    settings = json.loads((GOOD / "config.json").read_text())
    settings |= {"num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2}
    settings |= {"num_attention_heads": 1 << 15, "num_key_value_heads": 1 << 15, "head_dim": 256}
    settings |= {"max_position_embeddings": HUGE}
    settings["rope_parameters"]["partial_rotary_factor"] = 8 / 256
    (tmp_path / "config.json").write_text(json.dumps(settings))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
        "from edgewise import Model; "
        "model = Model.from_pretrained(sys.argv[1], dtype='f32', threads=1); "
        "print(len(model.generate([1], max_new_tokens=3).token_ids))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")


BATCH = """
import resource, sys
from pathlib import Path

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
sys.path.insert(0, sys.argv[1])
import test_hostile

folder, good = Path(sys.argv[2]), Path(sys.argv[3])
cases = test_hostile.FOLDER_CASES if good.is_dir() else test_hostile.FILE_CASES
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i, case in enumerate(cases):
    place = folder / str(i)
    place.mkdir()
    fault = test_hostile.check(case, test_hostile.prepared(case, place, good), case.dtype)
    if fault is not None:
        print(fault)
print(len(cases), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory differ")
@pytest.mark.parametrize("own", [False, True])
def test_one_process_survives_them_all(own: bool, own_file: Path, tmp_path: Path) -> None:
    """With 4 GB of addresses, and without growing by 300 MB."""
    here, good = Path(__file__).parent, own_file if own else GOOD
    done = subprocess.run(
        [sys.executable, "-c", BATCH, here, tmp_path, good],
        capture_output=True, text=True, timeout=110, env=os.environ | {"RUST_BACKTRACE": "0"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    cases, megabytes = map(int, done.stdout.split())
    assert cases == len(FILE_CASES if own else FOLDER_CASES)
    assert megabytes < 300
