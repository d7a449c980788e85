"""Weights that move into large pages: at once, little by little, or never; the same bits at every moment."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import edgewise
from edgewise import _native
from edgewise.cli.main import main
from test_larger_than_memory import CONFIG

FOLDER = Path("/sys/kernel/mm/transparent_hugepage")
MOST_TOKENS = 30_000


def page() -> int | None:
    """Return the bytes of a large page, `None` if this system gives programs none."""
    enabled = FOLDER / "enabled"
    if not enabled.exists() or "[never]" in enabled.read_text():
        return None
    return int((FOLDER / "hpage_pmd_size").read_text())


needs_pages = pytest.mark.skipif(page() is None, reason="this system gives programs no large pages")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A mixture of experts of about 35 MB, of which a token reads little."""
    config = CONFIG | {"num_hidden_layers": 4, "num_experts": 32}
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    _native.write_random(json.dumps(config), str(path))
    return str(path)


def token(engine: _native.Engine, i: int) -> int:
    return (7919 * i + 11) % engine.vocab_size


def bits(engine: _native.Engine, tokens: int = 24, first: int = 0) -> list[bytes]:
    """The logits after each token of a text that goes to many experts."""
    sequence = engine.sequence()
    found = []
    for i in range(first, first + tokens):
        sequence.append([token(engine, i)])
        found.append(sequence.logits().tobytes())
    return found


def settled(engine: _native.Engine) -> int:
    return int(engine.info()["large_page_bytes"])


def most(engine: _native.Engine) -> int:
    """Return the bytes that settle at least: all of the weights but what shares its pages with others."""
    return int(engine.info()["weight_bytes"]) - 3 * (page() or 0)


@needs_pages
def test_all_at_once(path: str) -> None:
    mapped = _native.Engine.open(path, threads=2, large_pages=False)
    moved = _native.Engine.open(path, threads=2, large_pages=True)
    assert (settled(mapped), settled(moved) >= most(moved)) == (0, True)
    assert bits(moved) == bits(mapped)
    mapped.settle()
    assert settled(mapped) == 0, "never means never"


@needs_pages
def test_moving_at_once_can_be_stopped(path: str) -> None:
    class StopError(Exception):
        pass

    moving = 0

    def progress(done: int, total: int, name: str) -> None:
        nonlocal moving
        assert done <= total
        moving += name == "large pages"
        if moving == 2:
            raise StopError

    with pytest.raises(StopError):
        _native.Engine.open(path, threads=2, progress=progress, large_pages=True)
    assert moving == 2, "asked before each part"


@needs_pages
def test_little_by_little(path: str) -> None:
    wanted = bits(_native.Engine.open(path, threads=2, large_pages=False))
    engine = _native.Engine.open(path, threads=2)
    assert settled(engine) == 0, "nothing before the first token"
    engine.sequence().append([token(engine, i) for i in range(40)])
    assert settled(engine) == 0, "prompts gain nothing by it"
    steps = [0]
    sequence = engine.sequence()
    for i in range(MOST_TOKENS):
        if len(sequence) == 1024:
            sequence = engine.sequence()
        sequence.append([token(engine, i)])
        steps.append(settled(engine))
        if i % 256 == 0:
            assert bits(engine, 2) == wanted[:2]
        if steps[-1] >= most(engine):
            break
    assert steps[-1] >= most(engine)
    assert steps == sorted(steps)
    assert len(set(steps)) > 3, "more than one token paid for it"
    assert bits(engine) == wanted


@needs_pages
@pytest.mark.parametrize("kv_dtype", ["f32", "int8"])
def test_caches_of_long_texts_follow(path: str, kv_dtype: str) -> None:
    plain = _native.Engine.open(path, kv_dtype=kv_dtype, threads=2, large_pages=False)
    moved = _native.Engine.open(path, kv_dtype=kv_dtype, threads=2, large_pages=True)

    def written(engine: _native.Engine) -> list[bytes]:
        sequence = engine.sequence()
        sequence.append([token(engine, i) for i in range(3000)])
        fork = sequence.fork()
        found = []
        for text in [fork, sequence, fork]:
            for i in range(2):
                text.append([token(engine, i)])
                engine.settle()
                found.append(text.logits().tobytes())
        return found

    assert written(moved) == written(plain)


@needs_pages
def test_while_other_threads_compute(path: str) -> None:
    engine = _native.Engine.open(path, threads=2)
    plain = _native.Engine.open(path, threads=2, large_pages=False)
    starts = [0, 100, 200]
    wanted = {first: bits(plain, first=first) for first in starts}
    found: dict[int, list[bytes]] = {}
    threads = [
        threading.Thread(target=lambda first: found.update({first: bits(engine, first=first)}), args=[first])
        for first in starts
    ]
    for thread in threads:
        thread.start()
    engine.settle()
    for thread in threads:
        thread.join()
    assert found == wanted
    assert settled(engine) >= most(engine)


@needs_pages
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_settles_for_itself(path: str) -> None:
    engine = _native.Engine.open(path, threads=1)
    wanted = bits(_native.Engine.open(path, threads=1, large_pages=False), 4)
    child = os.fork()
    if child == 0:
        engine.settle()
        os._exit(int(bits(engine, 4) != wanted or settled(engine) < most(engine)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bits(engine, 4) == wanted


@pytest.mark.skipif(page() is not None, reason="this system gives programs large pages")
def test_a_system_without(path: str) -> None:
    with pytest.raises(ValueError, match=r"^large_pages: .* this system gives programs none"):
        _native.Engine.open(path, large_pages=True)
    engine = _native.Engine.open(path)
    engine.settle()
    assert settled(engine) == 0


@needs_pages
def test_weights_that_are_converted_have_nothing_to_move() -> None:
    assert settled(_native.Engine.open("tests/golden/dense_text", "int4", large_pages=True)) == 0


@pytest.mark.parametrize("flag", [[], ["--no-large-pages"]])
def test_by_name(path: str, flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", path, "--json", *flag]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert facts["model"]["large_page_bytes"] == 0


@needs_pages
def test_by_name_at_once(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", path, "--json", "--large-pages"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["large_page_bytes"] > 0


def test_what_is_no_truth_value_is_refused() -> None:
    with pytest.raises(TypeError, match="large_pages"):
        edgewise.Model.from_pretrained("demo", large_pages="yes")  # type: ignore[arg-type]
