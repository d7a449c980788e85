"""`edgewise bench`: what is measured, and what it prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import golden
from edgewise import _native, benchmark, hub
from edgewise.benchmark import Measured, MediaShape, Plan, seeing
from edgewise.benchmark.seeing import TEXT_AFTER, TEXT_BEFORE, TIMESTAMP
from edgewise.cli import bench_tables, main

Captured = pytest.CaptureFixture[str]

START, END, IMAGE, VIDEO = range(200, 204)
TEXT = TEXT_BEFORE + TEXT_AFTER


class FakeFeatures:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens


class FakeSequence:
    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[tuple[int, FakeFeatures]]]] = []

    def append(self, ids: list[int], media: Sequence[tuple[int, FakeFeatures]] = ()) -> None:
        self.calls.append((ids, list(media)))


class FakeEngine:
    """Sees without looking, and remembers what it was given."""

    vocab_size = 256
    vision: ClassVar = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }

    def __init__(self) -> None:
        self.grids: list[tuple[int, int]] = []
        self.sequences: list[FakeSequence] = []

    def side_file(self, name: str) -> bytes | None:  # noqa: ARG002
        return None

    def encode(self, pixel_values: NDArray[np.float32], grid_hw: tuple[int, int]) -> FakeFeatures:
        rows, columns = grid_hw
        assert pixel_values.shape == (rows * columns, 3 * 2 * 16 * 16)
        self.grids.append(grid_hw)
        return FakeFeatures(rows * columns // 4)

    def sequence(self) -> FakeSequence:
        self.sequences.append(FakeSequence())
        return self.sequences[-1]


class FakeSampler:
    def __init__(self, vocab_size: int, temperature: float) -> None:
        assert (vocab_size, temperature) == (FakeEngine.vocab_size, 0.0)

    def sample(self, sequence: FakeSequence) -> None:
        assert len(sequence.calls) == 1, "the first token comes right after the prompt"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that sees instead of the real one."""
    engine = FakeEngine()
    monkeypatch.setattr(_native, "Sampler", FakeSampler)
    monkeypatch.setattr(_native, "Engine", type("Opener", (), {"open": lambda *_, **__: engine}))
    return engine


def see(shape: MediaShape, rounds: int) -> benchmark.MeasuredMedia:
    """Measures on whatever engine is opened."""
    return seeing.measure("model", Plan(rounds=rounds), shape)


class TestShapes:
    def test_an_image(self) -> None:
        assert MediaShape.image("640x480") == MediaShape(640, 480)
        assert str(MediaShape(640, 480)) == "640x480"

    def test_a_video(self) -> None:
        assert MediaShape.video("448x336x2.5") == MediaShape(448, 336, 2.5)
        assert [str(MediaShape(8, 4, seconds)) for seconds in (10.0, 2.5)] == ["8x4x10", "8x4x2.5"]

    @pytest.mark.parametrize("text", ["", "640", "6x", "6x4x2", "-1x3", "6X4", "6 x 4", "\u0666x4", "1x1\n"])
    def test_no_image(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^image: expected WIDTHxHEIGHT such as 640x480, got "):
            MediaShape.image(text)

    @pytest.mark.parametrize("text", ["", "640x480", "6x4x", "6x4xinf", "6x4x1e3", "6x4x-1", "6x4x2x1"])
    def test_no_video(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"^video: expected WIDTHxHEIGHTxSECONDS such as 448x448x10, "):
            MediaShape.video(text)

    def test_nothing_to_see(self) -> None:
        with pytest.raises(ValueError, match=r"^image: expected a number of at least 1, got 0$"):
            MediaShape.image("0x5")
        with pytest.raises(ValueError, match=r"^video: expected a number of at least 1, got 0$"):
            MediaShape.video("5x0x1")
        with pytest.raises(
            ValueError, match=r"^video: expected a number above 0 and at most 86400, got 0.0$"
        ):
            MediaShape.video("5x5x0.0")

    @pytest.mark.parametrize("size", benchmark.SHAPES)
    def test_every_size_has_a_tower(self, size: str) -> None:
        config = json.loads(benchmark.shapes(size))
        assert config["vision_config"]["out_hidden_size"] == config["text_config"]["hidden_size"]


class TestSeeing:
    def test_an_image_is_encoded_in_every_round(self, engine: FakeEngine) -> None:
        measured = see(MediaShape(640, 480), rounds=3)
        assert engine.grids == [(30, 40)] * 3
        assert len(engine.sequences) == 3
        assert (measured.tokens, measured.prompt_tokens) == (300, 300 + TEXT + 2)

    def test_placeholders_stand_where_the_features_go(self, engine: FakeEngine) -> None:
        see(MediaShape(320, 256), rounds=1)
        [(ids, [(start, features)])] = engine.sequences[0].calls
        assert start == TEXT_BEFORE + 1
        assert ids[start - 1 : start + 81] == [START, *[IMAGE] * 80, END]
        assert features.tokens == ids.count(IMAGE) == 80

    def test_a_video_has_a_group_for_two_frames(self, engine: FakeEngine) -> None:
        measured = see(MediaShape(448, 448, 10.0), rounds=2)
        assert engine.grids == [(28, 28)] * 20
        [(ids, media)] = engine.sequences[1].calls
        assert (measured.tokens, measured.prompt_tokens) == (1960, len(ids))
        assert len(ids) == 1960 + 10 * (TIMESTAMP + 2) + TEXT
        assert [start for start, _ in media] == [TEXT_BEFORE + 7 + i * (196 + 8) for i in range(10)]
        assert all(ids[start - 1 : start + 1] == [START, VIDEO] for start, _ in media)

    def test_a_short_video_has_a_frame(self, engine: FakeEngine) -> None:
        assert see(MediaShape(64, 64, 0.1), rounds=1).tokens == 4
        assert len(engine.grids) == 1

    def test_the_whole_is_its_parts(self, engine: FakeEngine) -> None:
        del engine
        measured = see(MediaShape(96, 96), rounds=1)
        parts = measured.prepare_seconds, measured.vision_seconds, measured.prefill_seconds
        assert min(parts) > 0
        assert measured.first_token_seconds == pytest.approx(sum(parts))

    def test_a_model_that_does_not_see(self) -> None:
        path = str(golden.FOLDER / "dense_text")
        with pytest.raises(ValueError, match=r"^96x96: the model has no vision tower, it reads text only$"):
            benchmark.measure(path, Plan([], media=[MediaShape(96, 96)], rounds=1, limit_seconds=None))


class TestDemo:
    def test_text_and_media(self) -> None:
        media = [MediaShape(96, 128), MediaShape(64, 64, 2.0)]
        plan = Plan(prompt_lengths=[8], media=media, new_tokens=4, rounds=1, limit_seconds=None)
        measured = benchmark.measure(hub.resolve("demo"), plan)
        assert list(measured.prefill_tokens_per_second) == list(measured.decode_tokens_per_second) == [8]
        assert list(measured.media) == ["96x128", "64x64x2"]
        for seen in measured.media.values():
            assert seen.prompt_tokens > seen.tokens > 0
            assert min(seen.prepare_seconds, seen.vision_seconds, seen.prefill_seconds) > 0
            assert seen.peak_memory_bytes is None or seen.peak_memory_bytes > measured.weight_bytes
        assert json.loads(json.dumps(measured.to_dict()))["media"]["96x128"]["tokens"] > 0


class TestCommand:
    @pytest.fixture
    def plans(self, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
        """The plans that were to be measured."""
        plans: list[Plan] = []

        def measure(_: str, plan: Plan, layers: int | None = None) -> Measured:
            assert layers is None
            plans.append(plan)
            return Measured("portable", 1, 1000, 0.001, 0.5, {}, {}, None)

        monkeypatch.setattr(benchmark, "measure", measure)
        return plans

    def test_text_is_measured_unless_there_is_something_to_see(self, plans: list[Plan]) -> None:
        assert main(["bench", "demo"]) == 0
        assert main(["bench", "demo", "--image", "96x96"]) == 0
        assert main(["bench", "demo", "--image", "96x96", "--prompt", "7", "--prompt", "9"]) == 0
        assert [list(plan.prompt_lengths) for plan in plans] == [[512], [], [7, 9]]
        assert [list(plan.media) for plan in plans] == [[], [MediaShape(96, 96)], [MediaShape(96, 96)]]

    def test_depths_are_those_of_the_prompts_unless_given(self, plans: list[Plan]) -> None:
        assert main(["bench", "demo", "--prompt", "7"]) == 0
        assert main(["bench", "demo", "--depth", "0", "--depth", "9"]) == 0
        assert [list(plan.decode_depths) for plan in plans] == [[7], [0, 9]]

    def test_how_keys_and_values_are_held(self, plans: list[Plan]) -> None:
        assert main(["bench", "demo", "--kv-dtype", "int8"]) == 0
        assert main(["bench", "demo"]) == 0
        assert [plan.kv_dtype for plan in plans] == ["int8", "auto"]

    def test_keys_and_values_in_no_known_type(self, capsys: Captured) -> None:
        assert main(["bench", "demo", "--kv-dtype", "int3"]) == 1
        assert capsys.readouterr().err.startswith("edgewise: kv_dtype: ")

    def test_everything(self, plans: list[Plan]) -> None:
        assert main(["bench", "demo", "--full"]) == 0
        assert main(["bench", str(golden.FOLDER / "dense_text"), "--full"]) == 0
        assert [list(plan.prompt_lengths) for plan in plans] == [[128, 512, 2048, 8192]] * 2
        assert [list(plan.decode_depths) for plan in plans] == [[0, 2048, 8192]] * 2
        assert [list(plan.media) for plan in plans] == [[MediaShape(640, 480)], []]

    def test_a_depth_below_zero(self, plans: list[Plan], capsys: Captured) -> None:
        assert main(["bench", "demo", "--depth", "-1"]) == 1
        assert capsys.readouterr().err == "edgewise: depth: expected a number of at least 0, got -1\n"
        assert plans == []

    def test_images_come_before_videos(self, plans: list[Plan]) -> None:
        argv = ["--video", "64x64x1", "--image", "96x96", "--image", "32x64", "--video", "64x32x2"]
        assert main(["bench", "demo", *argv]) == 0
        assert list(map(str, plans[0].media)) == ["96x96", "32x64", "64x64x1", "64x32x2"]

    def test_a_wrong_size_is_an_error_before_any_work(self, plans: list[Plan], capsys: Captured) -> None:
        assert main(["bench", "demo", "--image", "big"]) == 1
        assert capsys.readouterr().err == (
            "edgewise: image: expected WIDTHxHEIGHT such as 640x480, got 'big'\n"
        )
        assert main(["bench", "demo", "--video", "64x64"]) == 1
        assert plans == []

    def test_json(self, capsys: Captured) -> None:
        argv = ["bench", "demo", "--image", "96x96", "--video", "64x64x2", "--rounds", "1", "--json"]
        assert main(argv) == 0
        printed = cast("dict[str, Any]", json.loads(capsys.readouterr().out))
        assert set(printed["media"]) == {"96x96", "64x64x2"}
        assert set(printed["media"]["96x96"]) == {
            "tokens",
            "prompt_tokens",
            "prepare_seconds",
            "vision_seconds",
            "prefill_seconds",
            "first_token_seconds",
            "peak_memory_bytes",
        }

    def test_a_table(self) -> None:
        seen = benchmark.MeasuredMedia(300, 322, 0.004, 0.8, 1.25, 2.054, 900_000_000)
        text = Measured("avx2", 2, 1_500_000, 0.0021, 0.5, {512: 100.0}, {512: 12.5}, None)
        measured = dataclasses.replace(text, media={"640x480": seen})
        lines = [line.split() for line in bench_tables.text(measured).splitlines()]
        assert lines == [
            ["avx2,", "2", "threads"],
            ["weights", "1.5", "MB"],
            ["open", "2.1", "ms"],
            ["open", "to", "first", "token", "500", "ms"],
            ["read", "512", "tokens", "100.0", "tokens/s"],
            ["write", "after", "512", "tokens", "12.5", "tokens/s"],
            ["see", "640x480", "300", "+", "22", "tokens"],
            ["prepare", "4.0", "ms"],
            ["vision", "800", "ms"],
            ["read", "1250", "ms"],
            ["pixels", "to", "first", "token", "2054", "ms"],
            ["peak", "memory", "900", "MB"],
        ]
