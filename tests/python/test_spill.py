"""States on disk: found again by this and later processes, within a limit, and never if anything is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import golden
from edgewise import Model

ROOM = 600_000
"""Bytes for about two states of the small model with their pages."""


def ids(seed: int, tokens: int) -> list[int]:
    return [(i * 31 + i * i * 7 + seed) % 250 for i in range(tokens)]


def opened(folder: Path | None, name: str = "dense_text", **options: Any) -> Model:
    path = golden.FOLDER / name
    arguments: dict[str, Any] = {
        "dtype": "int4",
        "threads": 2,
        "cache_bytes": ROOM,
        "spill_dir": folder,
    } | options
    return Model.from_pretrained(path, **arguments)


@cache
def cold() -> Model:
    return opened(None, cache_bytes=0)


def ask(model: Model, seed: int, tokens: int = 200) -> int:
    """Compare an answer with that of a model without cache; return how many tokens were not computed."""
    options: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    prompt = [*ids(seed, tokens), 1, 2]
    found, wanted = model.generate(prompt, **options), cold().generate(prompt, **options)
    assert [(entry.token_id, entry.logprob) for entry in found.logprobs or []] == [
        (entry.token_id, entry.logprob) for entry in wanted.logprobs or []
    ]
    return found.usage.cached_tokens


def texts(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A folder with the states of eight texts."""
    model = opened(tmp_path / "spill")
    assert [ask(model, seed) for seed in range(8)] == [0] * 8
    model.spill_cache()
    return tmp_path / "spill"


def test_what_had_no_room_in_memory_is_found_again(tmp_path: Path) -> None:
    model = opened(tmp_path)
    for seed in range(8):
        assert ask(model, seed) == 0
        assert model.cached_bytes <= ROOM
    assert len(texts(tmp_path)) >= 5
    assert [ask(model, seed) for seed in range(8)] == [202] * 8
    assert model.cached_bytes <= ROOM


def test_nothing_is_written_while_there_is_room(tmp_path: Path) -> None:
    model = opened(tmp_path, cache_bytes=1 << 28)
    assert [ask(model, 1), ask(model, 1)] == [0, 202]
    assert texts(tmp_path) == []
    assert model.spill_cache() == 1
    assert len(texts(tmp_path)) == 1


def test_a_file_that_another_process_removes_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tmp_path, cache_bytes=1 << 28)
    ask(model, 1)
    assert model.spill_cache() == 1
    utime = os.utime

    def too_late(path: Path) -> None:
        path.unlink()
        utime(path)

    monkeypatch.setattr(os, "utime", too_late)
    assert model.spill_cache() == 1
    assert len(texts(tmp_path)) == 1


def test_another_process(full: Path) -> None:
    code = f"""
from edgewise import Model
model = Model.from_pretrained({str(golden.FOLDER / "dense_text")!r}, dtype="int4", spill_dir={str(full)!r})
print(model.generate({[*ids(3, 200), 1, 2, 7]!r}, max_new_tokens=1).usage.cached_tokens)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("202", "")


@pytest.mark.parametrize(
    "other", [{"kv_dtype": "int8"}, {"dtype": "int8"}, {"name": "dense_text_d128"}], ids=str
)
def test_other_models_do_not_read_it(full: Path, other: dict[str, Any]) -> None:
    before = texts(full)
    model = opened(full, **other, cache_bytes=1 << 28)
    assert model.generate([*ids(3, 200), 1, 2], max_new_tokens=1).usage.cached_tokens == 0
    assert texts(full) == before


def test_another_version_does_not_read_it(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.spill.version", lambda _: "999.0")
    assert ask(opened(full), 3) == 0


def test_the_limit_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    probe = opened(tmp_path / "probe")
    ask(probe, 0)
    probe.spill_cache()
    (file,) = texts(tmp_path / "probe")
    limit = 3 * file.stat().st_size + 40_000  # Room is made for more than a file takes.
    folder = tmp_path / "spill"
    model = opened(folder, spill_bytes=limit)
    for seed in range(8):
        ask(model, seed)
        assert sum(path.stat().st_size for path in texts(folder)) <= limit
        for path in texts(folder):  # So that no two were used at the same time.
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert len(texts(folder)) == 3
    fresh = opened(folder, spill_bytes=limit, cache_bytes=1 << 28)
    found = [ask(fresh, seed) > 0 for seed in range(8)]
    first = found.index(True)
    assert first > 0
    assert found[first:] == [True] * 3 + [False] * (5 - first), "the others are in the memory of `model`"

    none = opened(tmp_path / "none", spill_bytes=0)
    for seed in range(8):
        ask(none, seed)
    assert texts(tmp_path / "none") == []


def test_damaged_files_are_removed_and_never_used(full: Path) -> None:
    for number, path in enumerate(texts(full)):
        data = bytearray(path.read_bytes())
        if number % 2:
            path.write_bytes(data[: len(data) // 2])
        else:
            data[-100] ^= 1
            path.write_bytes(data)
    model = opened(full, cache_bytes=1 << 28)
    with pytest.warns(RuntimeWarning, match=r"^spill_dir: .*it is removed"):
        assert [ask(model, seed) for seed in range(8)] == [0] * 8
    assert texts(full) == []


def test_a_file_under_the_name_of_another(full: Path) -> None:
    first, second, *rest = texts(full)
    first.replace(second)
    model = opened(full, cache_bytes=1 << 28)
    with pytest.warns(RuntimeWarning, match="holds another text than its name says"):
        cached = [ask(model, seed) for seed in range(8)]
    assert sorted(cached) == [0, 0, *[202] * 6]
    assert texts(full) == rest


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    foreign = [tmp_path / "notes.txt", tmp_path / "model.safetensors", tmp_path / "0-1-2.text.safetensors"]
    for path in foreign:
        path.write_bytes(b"x" * 100)
    (tmp_path / "folder").mkdir()
    model = opened(tmp_path, spill_bytes=1)
    for seed in range(4):
        ask(model, seed)
    assert texts(tmp_path) == sorted([*foreign, tmp_path / "folder"])


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_while_writing(tmp_path: Path) -> None:
    """Whatever is there is whole: later processes read it without a warning."""
    code = f"""
from edgewise import Model
from test_spill import ROOM, ids, opened
from pathlib import Path
model = opened(Path({str(tmp_path)!r}))
for seed in range(10**6):
    model.generate([*ids(seed % 250, 200), 1, 2], max_new_tokens=1)
    print(seed, flush=True)
"""
    for delay in (0.0, 0.005, 0.02):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parent
        )
        assert process.stdout is not None
        with process:
            for _ in range(10):
                process.stdout.readline()
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
    model = opened(tmp_path, cache_bytes=1 << 28)
    assert sum(ask(model, seed) > 0 for seed in range(10)) >= 5
    assert all(path.suffix in (".safetensors", ".tmp") for path in texts(tmp_path))


def test_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    old, new = tmp_path / ".edgewise-1-0.tmp", tmp_path / ".edgewise-2-0.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 7200))
    ask(opened(tmp_path), 1)
    assert texts(tmp_path) == [new]


def test_a_folder_that_fails_is_a_warning(full: Path) -> None:
    model = opened(full)
    for path in texts(full):
        path.unlink()
    full.rmdir()
    with pytest.warns(RuntimeWarning, match="^spill_dir: "):
        assert [ask(model, seed) for seed in range(8)] == [0] * 8


def test_texts_with_pictures_stay_in_memory(tmp_path: Path) -> None:
    model = Model.from_pretrained("demo", threads=2, spill_dir=tmp_path)
    picture = Image.new("RGB", (96, 96), "red")
    part = [{"type": "image", "image": picture}, {"type": "text", "text": "Which shape do you see? " * 9}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a helpful assistant. " * 10},
        {"role": "user", "content": part},
    ]
    model.generate(messages)
    model.spill_cache()
    again = Model.from_pretrained("demo", threads=2, spill_dir=tmp_path)
    result = again.generate(messages, temperature=0)
    start = again.prepare(messages).media[0].starts[0]
    assert 0 < result.usage.cached_tokens < start
    plain = Model.from_pretrained("demo", threads=2, cache_bytes=0)
    assert result.token_ids == plain.generate(messages, temperature=0).token_ids


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^spill_dir: without a cache in memory"):
        opened(tmp_path, cache_bytes=0)
    with pytest.raises(ValueError, match=r"^spill_bytes: "):
        opened(tmp_path, spill_bytes=-1)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        opened(tmp_path / "file")
    assert opened(None).spill_cache() == 0


def test_threads_and_two_models_on_one_folder(tmp_path: Path) -> None:
    models = [opened(tmp_path, spill_bytes=1_500_000) for _ in range(2)]
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for i in range(12):
                ask(models[thread % 2], (thread + i * i) % 7, 100 + 30 * (i % 3))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not [path for path in texts(tmp_path) if path.suffix == ".tmp"]
