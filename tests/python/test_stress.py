"""Several threads append, fork, cut back, save and generate on one model with one small cache: bits stay."""

from __future__ import annotations

import threading
from pathlib import Path
from random import Random

import pytest

import golden
from edgewise import Model
from test_sequence import Script

THREADS = 4
STEPS = 30
NAMES = (
    ["append"] * 5 + ["generate"] * 3 + ["rewind"] * 3 + ["fork", "fork", "switch", "switch", "save", "new"]
)


@pytest.mark.parametrize("spilling", [False, True], ids=["in memory", "spilling"])
def test_random_scripts_in_threads(tmp_path: Path, spilling: bool) -> None:
    model = Model.from_pretrained(
        golden.FOLDER / "dense_text",
        dtype="int4",
        threads=2,
        cache_bytes=900_000,
        spill_dir=tmp_path if spilling else None,
        spill_bytes=3_000_000,
    )
    barrier = threading.Barrier(THREADS)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng, script = Random(seed), Script(model)
        barrier.wait()
        try:
            for _ in range(STEPS):
                name = rng.choice(NAMES)
                first, second = rng.randint(0, 8), rng.randint(1, 120 if name == "append" else 8)
                script.run(name, rng.randint(0, 100) if name == "rewind" else first, second)
                assert model.cached_bytes <= 900_000
                if len(script.pairs[-1][1]) > 1500:
                    script.run("new", 0, 0)
                del script.pairs[:-4]
            script.check()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert model.cached_bytes > 0
    assert any(tmp_path.iterdir()) == spilling
