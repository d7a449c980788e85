"""Images the native layer must refuse: one clear exception each, and the engine stays usable."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden
from edgewise import ContextError, _native
from golden import Array

VALUES = 3 * 2 * 16 * 16
"""Numbers of a patch."""
IMAGE, VIDEO = 491, 492
"""Placeholders of the recorded models."""


@cache
def open_engine(case: str) -> _native.Engine:
    return _native.Engine.open(str(golden.FOLDER / case), dtype="f32", threads=2)


def engine(case: str = "image") -> _native.Engine:
    return open_engine(case)


def pixels(patches: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, (patches, VALUES)).astype(np.float32)


@cache
def features(rows: int = 4, columns: int = 6, case: str = "image") -> _native.VisualFeatures:
    return engine(case).encode(pixels(rows * columns), (rows, columns))


def check_usable() -> None:
    """The engine gives the same features and logits as ever."""
    again = engine().encode(pixels(24), (4, 6))
    np.testing.assert_array_equal(again.embeddings, features().embeddings)


def strided(patches: int) -> Array:
    return pixels(2 * patches)[::2]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (pixels(23), ValueError, r"has shape \[23, 1536\], expected \[24, 1536\]"),
        (pixels(25), ValueError, r"has shape \[25, 1536\], expected \[24, 1536\]"),
        (pixels(24)[:, :-1], ValueError, r"has shape \[24, 1535\], expected \[24, 1536\]"),
        (pixels(24).T, ValueError, r"has shape \[1536, 24\], expected \[24, 1536\]"),
        (pixels(24).ravel(), ValueError, r"has 1 dimensions \[36864\], it needs 2"),
        (pixels(24)[None], ValueError, r"has 3 dimensions \[1, 24, 1536\], it needs 2"),
        (np.float32(1), TypeError, "expected an array of float32"),
        (pixels(0), ValueError, r"has shape \[0, 1536\], expected \[24, 1536\]"),
        (pixels(24).astype(np.float64), TypeError, "expected an array of float32, got ndarray of float64"),
        (pixels(24).astype(np.float16), TypeError, "expected an array of float32, got ndarray of float16"),
        (pixels(24).astype(np.uint8), TypeError, "expected an array of float32, got ndarray of uint8"),
        (pixels(24).astype(">f4"), TypeError, "expected an array of float32"),
        (pixels(24).astype(object), TypeError, "expected an array of float32, got ndarray of object"),
        (pixels(24).tolist(), TypeError, "expected an array of float32, got list"),
        (None, TypeError, "expected an array of float32, got NoneType"),
    ],
)  # fmt: skip
def test_pixels_of_another_shape_or_type(values: Any, error: type[Exception], message: str) -> None:
    for call in (engine().encode, engine().trace_vision):
        with pytest.raises(error, match=f"^pixel_values: {message}"):
            call(values, (4, 6))
    check_usable()


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        ((3, 8), ValueError, r"grid_hw: \(3, 8\) must be multiples of 2, and not zero"),
        ((8, 3), ValueError, r"grid_hw: \(8, 3\) must be multiples of 2, and not zero"),
        ((1, 24), ValueError, r"grid_hw: \(1, 24\) must be multiples of 2, and not zero"),
        ((4, 4), ValueError, r"pixel_values: has shape \[24, 1536\], expected \[16, 1536\]"),
        ((0, 6), ValueError, r"grid_hw: \(0, 6\) must be multiples of 2, and not zero"),
        ((512, 514), ValueError, r"grid_hw: \(512, 514\) are more than 262144 patches"),
        ((2**62, 2**62), ValueError, r"grid_hw: \(\d+, \d+\) are more than 262144 patches"),
        ((2**63, 2**63), ValueError, r"grid_hw: \(\d+, \d+\) are more than 262144 patches"),
        ((2**64, 2), ValueError, "grid_hw: expected a whole number from 0"),
        ((-4, -6), ValueError, "grid_hw: expected a whole number from 0, got -4"),
        ((4,), ValueError, "grid_hw: expected two whole numbers, got 1"),
        ((1, 4, 6), ValueError, "grid_hw: expected two whole numbers, got 3"),
        ((), ValueError, "grid_hw: expected two whole numbers, got 0"),
        ((4.0, 6.0), TypeError, "grid_hw: expected a whole number, got float"),
        (("4", "6"), TypeError, "grid_hw: expected a whole number, got str"),
        ("46", TypeError, "grid_hw: expected"),
        (24, TypeError, "grid_hw: expected two whole numbers, got int"),
        (None, TypeError, "grid_hw: expected two whole numbers, got NoneType"),
    ],
)
def test_grids(grid: Any, error: type[Exception], message: str) -> None:
    for call in (engine().encode, engine().trace_vision):
        with pytest.raises(error, match=f"^{message}"):
            call(pixels(24), grid)
    check_usable()


def test_nothing_is_no_image() -> None:
    for grid in [(0, 0), (0, 2), (2, 0), (0, 2**63)]:
        with pytest.raises(ValueError, match=r"^grid_hw: .* must be multiples of 2, and not zero"):
            engine().encode(pixels(0), grid)


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (13, 700), (23, VALUES - 1)])
def test_pixels_that_are_not_finite(fault: float, place: tuple[int, int]) -> None:
    values = pixels(24)
    values[place] = fault
    with pytest.raises(ValueError, match=r"^pixel_values: holds NaN or infinity$"):
        engine().encode(values, (4, 6))
    check_usable()


def test_arrays_of_any_layout_are_read() -> None:
    plain = engine().encode(strided(24).copy(), (4, 6)).embeddings
    read_only = strided(24).copy()
    read_only.flags.writeable = False
    for values in (strided(24), np.asfortranarray(strided(24)), read_only):
        np.testing.assert_array_equal(engine().encode(values, (4, 6)).embeddings, plain)
    numbers = np.array([4, 6])
    np.testing.assert_array_equal(engine().encode(strided(24), tuple(numbers)).embeddings, plain)
    np.testing.assert_array_equal(engine().encode(strided(24), [4, 6]).embeddings, plain)  # type: ignore[arg-type]


def test_features_are_copies() -> None:
    found = features(2, 2)
    found.embeddings[:] = 0
    assert np.abs(found.embeddings).max() > 0
    with pytest.raises(AttributeError):
        found.tokens = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        _native.VisualFeatures()


def test_a_text_model_encodes_nothing() -> None:
    blind = engine("dense_text")
    assert blind.vision is None
    for call in (blind.encode, blind.trace_vision):
        with pytest.raises(
            ValueError, match=r"^pixel_values: the model has no vision tower, it reads text only$"
        ):
            call(pixels(4), (2, 2))
    with pytest.raises(ValueError, match=r"^media\[0\]: comes from another model$"):
        blind.logits([1] * 6, [(0, features())])


def prompt(*spans: int, length: int = 20, token: int = IMAGE) -> list[int]:
    """Text with room for six tokens at each index of `spans`."""
    ids = [7] * length
    for start in spans:
        ids[start : start + 6] = [token] * 6
    return ids


def refusals() -> list[Any]:
    six, other = features(), features(case="image_pos64")
    return [
        ([(3, six), (8, six)], prompt(3, 8), r"\[1\]: takes 6 tokens from index 8, but only 9..20 are left"),
        ([(3, six), (3, six)], prompt(3), r"\[1\]: takes 6 tokens from index 3, but only 9..20 are left"),
        (
            [(10, six), (3, six)],
            prompt(3, 10),
            r"\[1\]: takes 6 tokens from index 3, but only 16..20 are left",
        ),
        ([(15, six)], prompt(14), r"\[0\]: takes 6 tokens from index 15, but only 0..20 are left"),
        ([(20, six)], prompt(14), r"\[0\]: takes 6 tokens from index 20, but only 0..20 are left"),
        ([(2**64 - 1, six)], prompt(3), r"\[0\]: takes 6 tokens from index 18446744073709551615"),
        ([(3, six)], prompt(4), r"\[0\]: id 7 at index 3 is no placeholder of images"),
        ([(4, six)], prompt(3), r"\[0\]: id 7 at index 9 is no placeholder of images"),
        ([(3, six)], prompt(), r"\[0\]: id 7 at index 3 is no placeholder of images"),
        ([(3, six)], prompt(3, token=488), r"\[0\]: id 488 at index 3 is no placeholder of images"),
        ([(0, six)], [], r"\[0\]: takes 6 tokens from index 0, but only 0..0 are left"),
        ([(3, six), (10, other)], prompt(3, 10), r"\[1\]: comes from another model"),
    ]


@pytest.mark.parametrize(("media", "ids", "message"), refusals())
def test_spans(media: Any, ids: list[int], message: str) -> None:
    sequence = engine().sequence()
    sequence.append([1, 2])
    for call in (sequence.append, engine().logits, engine().trace):
        with pytest.raises(ValueError, match=f"^media{message}"):
            call(ids, media)
    assert (len(sequence), sequence.next_position) == (2, 2)


@pytest.mark.parametrize(
    "media",
    [
        7,
        "ab",
        [7],
        [(3,)],
        [(3, None)],
        [(3, features(), 1)],
        [("3", features())],
        [(3.0, features())],
        [(-3, features())],
        [(2**64, features())],
        [(3, features().embeddings)],
        {3: features()},
    ],
    ids=str,
)
def test_media_of_another_type(media: Any) -> None:
    for call in (engine().sequence().append, engine().logits, engine().trace):
        with pytest.raises(
            (TypeError, ValueError), match=r"^media: expected a list of \(index of the first placeholder"
        ):
            call(prompt(3), media)


def test_two_engines_of_one_checkpoint_do_not_share_features() -> None:
    other = _native.Engine.open(str(golden.FOLDER / "image"), dtype="f32")
    with pytest.raises(ValueError, match=r"^media\[0\]: comes from another model$"):
        other.logits(prompt(3), [(3, features())])


def test_features_outlive_the_name_of_their_engine() -> None:
    short_lived = _native.Engine.open(str(golden.FOLDER / "image"), dtype="f32")
    found, sequence = short_lived.encode(pixels(24), (4, 6)), short_lived.sequence()
    del short_lived
    sequence.append(prompt(3), [(3, found)])
    np.testing.assert_array_equal(sequence.logits(), engine().logits(prompt(3), [(3, features())])[-1])


def test_placeholders_without_features_are_tokens() -> None:
    """Both kinds hold either kind of features; what is left over is text."""
    plain = engine().logits(prompt(3))
    shown = engine().logits(prompt(3), [(3, features())])
    as_video = engine().logits(prompt(3, token=VIDEO), [(3, features())])
    np.testing.assert_array_equal(plain[:3], shown[:3])
    assert np.abs(plain[3:] - shown[3:]).max() > 0.01
    np.testing.assert_array_equal(shown, as_video)
    nothings: list[list[tuple[int, _native.VisualFeatures]] | None] = [[], None]
    for nothing in nothings:
        np.testing.assert_array_equal(engine().logits(prompt(3), nothing), plain)


def test_a_full_context_counts_images() -> None:
    sequence = engine("image").sequence()
    sequence.append([5] * (engine().context_length - 19))
    before = sequence.logits()
    with pytest.raises(ContextError):
        sequence.append(prompt(3), [(3, features())])
    np.testing.assert_array_equal(sequence.logits(), before)
    sequence.append(prompt(3)[:19], [(3, features())])
    assert len(sequence) == engine().context_length


@pytest.mark.parametrize(
    ("tokens", "spans", "message"),
    [
        (5, [(0, 2, 3)], r"spans\[0\]: 2 x 3 tokens from index 0 do not fit into 0..5"),
        (9, [(0, 2, 3), (5, 1, 2)], r"spans\[1\]: 1 x 2 tokens from index 5 do not fit into 6..9"),
        (9, [(3, 2, 3), (0, 1, 2)], r"spans\[1\]: 1 x 2 tokens from index 0 do not fit into 9..9"),
        (9, [(0, 0, 3)], r"spans\[0\]: 0 x 3 tokens"),
        (9, [(0, 3, 0)], r"spans\[0\]: 3 x 0 tokens"),
        (9, [(0, 2**40, 2**40)], r"spans\[0\]: "),
        (9, [(2**64 - 1, 1, 1)], r"spans\[0\]: "),
        (2**31, [], "tokens: 2147483648 from 0 on are too many"),
        (2**63, [(0, 1, 1)], "tokens: "),
    ],
)
def test_positions(tokens: int, spans: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        _native.position_ids(tokens, spans)
    with pytest.raises(ValueError, match=r"^tokens: 1 from 4294967295 on are too many"):
        _native.position_ids(1, [], 2**32 - 1)


@settings(max_examples=60)
@given(
    starts=st.lists(st.integers(0, 24), max_size=4),
    ids=st.lists(st.sampled_from([7, IMAGE, VIDEO]), max_size=24),
)
def test_any_spans_are_read_or_refused(starts: list[int], ids: list[int]) -> None:
    """Accepted are spans in order, apart, inside, on placeholders; nothing else."""
    ends = [0] + [start + 6 for start in starts]
    good = all(end <= start for end, start in zip(ends, starts, strict=False)) and ends[-1] <= len(ids)
    good = good and all(ids[at] != 7 for start in starts for at in range(start, start + 6))
    sequence = engine().sequence()
    media = [(start, features()) for start in starts]
    if good:
        sequence.append(ids, media)
        assert len(sequence) == len(ids)
        # Six tokens, two rows of three, move the position by three.
        assert sequence.next_position == len(ids) - 3 * len(starts)
    else:
        with pytest.raises(ValueError, match=r"^media\[\d\]: "):
            sequence.append(ids, media)
        assert len(sequence) == 0


class StoppedError(Exception):
    """Raised by a progress bar."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedError])
@pytest.mark.parametrize("last", range(5))
def test_progress_tells_the_blocks_and_stops(error: type[BaseException], last: int) -> None:
    """Told before the patches, before each of three blocks and before the merger."""
    calls: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, name: str) -> None:
        calls.append((done, total, name))
        if len(calls) > last:
            raise error

    with pytest.raises(error):
        engine().encode(pixels(24), (4, 6), progress)
    assert calls == [(done, 3, "vision") for done in [0, 0, 1, 2, 3]][: last + 1]
    check_usable()


def test_progress_may_use_the_engine() -> None:
    """Encoding holds nothing that another call from inside its progress would wait for."""
    found = []

    def progress(done: int, *_: object) -> None:
        if done == 1:
            found.append(engine().encode(pixels(24), (4, 6)).embeddings)
            engine().logits(prompt(3), [(3, features())])

    outer = engine().encode(pixels(24), (4, 6), progress)
    np.testing.assert_array_equal(found[0], outer.embeddings)


def test_progress_that_is_no_function() -> None:
    with pytest.raises(TypeError):
        engine().encode(pixels(24), (4, 6), 5)  # type: ignore[arg-type]
    check_usable()


def test_threads_encode_at_once() -> None:
    results: dict[int, Array] = {}

    def encode(seed: int) -> None:
        results[seed] = engine().encode(pixels(60, seed), (6, 10)).embeddings

    threads = [threading.Thread(target=encode, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, found in results.items():
        np.testing.assert_array_equal(found, engine().encode(pixels(60, seed), (6, 10)).embeddings)
    assert len(results) == 6


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from edgewise import _native

engine = _native.Engine.open(sys.argv[1], dtype="f32", threads=1)
values = np.zeros((128 * 128, 1536), np.float32)
expected = engine.encode(values[:24], (4, 6)).embeddings
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20),) * 2)
for call in (lambda: engine.encode(values, (128, 128)), lambda: _native.position_ids(1 << 30, [])):
    try:
        call()
    except MemoryError as error:
        print(error)
assert (engine.encode(values[:24], (4, 6)).embeddings == expected).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory differ")
def test_pixels_that_memory_has_no_room_for() -> None:
    """A hundred megabytes are to be copied, twenty can be had: an exception, not the end of the process."""
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, golden.FOLDER / "image"],
        capture_output=True, text=True, timeout=60, env=os.environ | {"RUST_BACKTRACE": "0"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    reason = "bytes of memory are needed at once, and the system does not give them"
    assert done.stdout.splitlines() == [f"{needed} {reason}" for needed in (128 * 128 * 1536 * 4, 2**30 * 12)]
