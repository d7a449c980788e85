"""`edgewise bench`: limits of the machine, what of them was reached, where time goes, models cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

import golden
from edgewise import _native, benchmark, hub
from edgewise.benchmark import MachineLimits, Measured, Plan, Share, Spent, limits, random_weights
from edgewise.benchmark.estimates import estimate
from edgewise.benchmark.text import Decoded, Speeds
from edgewise.cli import bench_tables, main

Captured = pytest.CaptureFixture[str]

LIMITS = MachineLimits(2, 50e9, 40e9, 2e12, 0.5e12)


class TestMachine:
    def test_every_number_of_threads(self) -> None:
        measured = _native.machine_limits(3, 0.0)
        assert measured["tier"] == _native.active_tier()
        assert measured["buffer_bytes"] >= 128 << 20
        assert [each["threads"] for each in measured["threads"]] == [1, 2, 3]
        for each in measured["threads"]:
            assert each.pop("mapped_bytes_per_second") is None
            assert min(each.values()) > 0

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with path.open("wb") as file:
            file.truncate(_native.machine_limits(1, 0.0)["buffer_bytes"])
        [large] = _native.machine_limits(1, 0.0, str(path))["threads"]
        assert large["mapped_bytes_per_second"] > 0
        path.write_bytes(b"small")
        [small] = _native.machine_limits(1, 0.0, str(path))["threads"]
        assert small["mapped_bytes_per_second"] is None

    def test_faulty_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"^threads: at least one is needed$"):
            _native.machine_limits(0)
        for seconds in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"^seconds: .* is no length of time$"):
                _native.machine_limits(1, seconds)
        with pytest.raises(FileNotFoundError):
            _native.machine_limits(1, 0.0, str(tmp_path / "none"))

    def test_not_measured_if_not_wanted(self) -> None:
        assert limits.measure("anywhere", Plan(limit_seconds=None)) == ()

    def test_a_folder_is_not_mapped(self) -> None:
        measured = limits.measure(str(golden.FOLDER / "dense_text"), Plan(limit_seconds=0.0, threads=2))
        assert [(each.threads, each.mapped_bytes_per_second) for each in measured] == [(1, None), (2, None)]

    def test_weights_are_read_as_fast_as_memory_or_file(self) -> None:
        assert LIMITS.read_bytes_per_second == 50e9
        assert MachineLimits(1, 30e9, 40e9, 1.0, 1.0).read_bytes_per_second == 40e9
        assert MachineLimits(1, 30e9, None, 1.0, 1.0).read_bytes_per_second == 30e9


class TestShares:
    def test_reading(self) -> None:
        costs = {"prefill_operations": {"int8": 10**9, "f32": 5}}
        assert limits.prefill_shares({512: 500.0}, costs, LIMITS) == {512: Share(10**9, 2e12, 0.25)}

    def test_nothing_to_compare_with(self) -> None:
        unquantized = {"prefill_operations": {"int8": 0, "f32": 5}}
        quantized = {"prefill_operations": {"int8": 1, "f32": 0}}
        assert limits.prefill_shares({512: 500.0}, unquantized, LIMITS) == {}
        assert limits.prefill_shares({512: 500.0}, quantized, None) == {}
        engine = _native.Engine.open(hub.resolve("demo"), threads=1)
        assert limits.decode_shares({512: [Decoded(1, 1.0, 1.0)]}, engine, 1, None) == {}

    def test_writing_reads_weights_state_and_cache(self) -> None:
        engine = _native.Engine.open(hub.resolve("demo"), threads=1)
        info = engine.info()
        written = [Decoded(100, 0.8, 0.2)]
        shares = limits.decode_shares({0: written, 50: written}, engine, 3, LIMITS)
        # One token to begin with, one that is not timed, then three with 3, 4 and 5 tokens in the context.
        assert shares[0].per_token == info["decode_bytes_per_token"] + 4 * info["kv_bytes_per_token"]
        assert shares[50].per_token == shares[0].per_token + 49 * info["kv_bytes_per_token"]
        assert shares[0].share == pytest.approx(shares[0].per_token * 100 / 50e9)

    def test_each_round_is_held_against_the_memory_beside_it(self) -> None:
        engine = _native.Engine.open(hub.resolve("demo"), threads=1)
        rounds = [Decoded(10, 0.1, 0.0, 20e9), Decoded(10, 0.2, 0.0, 10e9), Decoded(10, 0.1, 0.0, 40e9)]
        share = limits.decode_shares({0: rounds}, engine, 3, LIMITS)[0]
        assert share.limit == 20e9
        assert share.share == pytest.approx(share.per_token * 100 / 20e9)

    def test_speed_of_weights(self) -> None:
        engine = _native.Engine.open(hub.resolve("demo"), threads=1)
        assert engine.memory_speed(0.0) is None  # a few megabytes, which a cache may hold
        with pytest.raises(ValueError, match=r"^seconds: "):
            engine.memory_speed(float("nan"))

    def test_a_token_reads_most_of_the_weights_and_state(self) -> None:
        info = _native.Engine.open(str(golden.FOLDER / "dense_text"), threads=1).info()
        table = (
            2 * 64 * json.loads(golden.FOLDER.joinpath("dense_text/config.json").read_text())["vocab_size"]
        )
        assert 0 < info["decode_bytes_per_token"] <= info["weight_bytes"] + info["state_bytes"] + table


@pytest.fixture(scope="module")
def measured() -> Measured:
    """The demo, with everything."""
    plan = Plan([40], depths=[0, 8], new_tokens=4, rounds=1, limit_seconds=0.0, breakdown=True)
    return benchmark.measure(hub.resolve("demo"), plan)


class TestBreakdown:
    def test_the_parts_are_the_whole(self, measured: Measured) -> None:
        assert set(measured.breakdown) == {"prefill", "decode"}
        for breakdown in measured.breakdown.values():
            spent = breakdown.operations.values()
            assert sum(one.seconds for one in spent) == pytest.approx(breakdown.seconds)
            assert sum(one.share for one in spent) == pytest.approx(1)
            assert all(one.seconds >= 0 for one in spent)

    def test_kinds_of_operations(self, measured: Measured) -> None:
        reading, writing = measured.breakdown["prefill"], measured.breakdown["decode"]
        assert (reading.tokens, writing.tokens) == (40, 4)
        products = {"delta projections", "attention projections", "feed-forward"}
        rest = {"embedding", "norms", "quantisation", "delta rule", "attention", "activation"}
        assert set(reading.operations) == products | rest | {"other"}
        assert set(writing.operations) == set(reading.operations) | {"head", "sampling"}
        for name, spent in writing.operations.items():
            assert (spent.operations > 0) == (name in products | {"head"})

    def test_bytes_and_operations_agree_with_the_costs(self, measured: Measured) -> None:
        engine = _native.Engine.open(hub.resolve("demo"), threads=1)
        costs, cache = engine.costs(), engine.info()["kv_bytes_per_token"]
        writing = measured.breakdown["decode"].operations.values()
        # Tokens 42 to 45 of the context, after 40 of the prompt and one that is not counted.
        assert sum(spent.bytes for spent in writing) == 4 * costs["decode_bytes"] + cache * (
            42 + 43 + 44 + 45
        )

    def test_limits_and_shares(self, measured: Measured) -> None:
        assert measured.limits is not None
        assert measured.limits.threads == measured.threads
        assert list(measured.prefill_shares) == [40]
        assert list(measured.decode_shares) == [0, 8]
        assert all(share.share > 0 for share in measured.decode_shares.values())

    def test_json(self, measured: Measured) -> None:
        loaded = json.loads(json.dumps(measured.to_dict()))
        assert loaded["limits"]["int8_operations_per_second"] > 0
        assert loaded["decode_shares"]["8"]["share"] > 0
        assert loaded["breakdown"]["decode"]["operations"]["head"]["bytes"] > 0
        assert loaded["estimate"] is None

    def test_a_table(self) -> None:
        operations = {
            "norms": Spent(3, 0.001, 2000, 0, 0.25),
            "head": Spent(1, 0.003, 3_000_000, 6_000_000, 0.75),
        }
        example = Measured(
            "avx2",
            2,
            1_500_000,
            0.0021,
            0.5,
            {512: 100.0},
            {0: 12.5},
            None,
            limits=LIMITS,
            other_limits=(MachineLimits(1, 30e9, None, 1e12, 0.25e12),),
            prefill_shares={512: Share(10**9, 2e12, 0.25)},
            decode_shares={0: Share(10**9, 50e9, 0.504)},
            breakdown={"decode": benchmark.Breakdown(7, 0.004, operations, 45e9)},
        )
        assert [line.split() for line in bench_tables.text(example).splitlines()][4:] == [
            ["read", "512", "tokens", "100.0", "tokens/s", "25", "%", "of", "INT8", "arithmetic"],
            [
                "write",
                "after",
                "0",
                "tokens",
                "12.5",
                "tokens/s",
                "50",
                "%",
                "of",
                "memory",
                "speed",
                "50.0",
                "GB/s",
                "then",
            ],
            ["this", "machine", "at", "best"],
            ["threads", "memory", "mapped", "file", "INT8", "f32"],
            ["1", "30.0", "GB/s", "-", "1", "TOPS", "0.25", "TFLOPS"],
            ["2", "50.0", "GB/s", "40.0", "GB/s", "2", "TOPS", "0.5", "TFLOPS"],
            ["decode", "of", "7", "tokens:", "4.0", "ms,", "memory", "speed", "45.0", "GB/s", "then"],
            ["share", "time", "read", "speed", "arithmetic"],
            ["head", "75.0", "%", "3.0", "ms", "3", "MB", "1.0", "GB/s", "2", "GOPS"],
            ["norms", "25.0", "%", "1.0", "ms", "2", "kB", "0.0", "GB/s"],
        ]


class TestFewerLayers:
    @pytest.mark.parametrize("size", benchmark.SHAPES)
    def test_the_first_layers_are_the_model_s_own(self, size: str) -> None:
        config = json.loads(benchmark.shapes(size))
        cut = json.loads(benchmark.with_layers(benchmark.shapes(size), 8))
        assert cut["text_config"].pop("num_hidden_layers") == 8
        assert config["text_config"].pop("num_hidden_layers") == benchmark.layer_count(benchmark.shapes(size))
        assert cut == config

    def test_kinds_of_layers_are_cut_too(self) -> None:
        config = (golden.FOLDER / "image" / "config.json").read_text()
        twice = json.loads(config)
        text = twice["text_config"]
        text["num_hidden_layers"], text["layer_types"] = 8, 2 * text["layer_types"]
        cut = json.loads(benchmark.with_layers(json.dumps(twice), 4))
        assert cut["text_config"]["layer_types"] == json.loads(config)["text_config"]["layer_types"]

    @pytest.mark.parametrize(
        ("layers", "message"), [(6, "a multiple of 4"), (0, "a number of at"), (28, "a n")]
    )
    def test_a_number_of_layers_that_cannot_be(self, layers: int, message: str) -> None:
        with pytest.raises(ValueError, match=f"^layers: expected {message}"):
            benchmark.with_layers(benchmark.shapes("0.8B"), layers)

    def test_layers_grow_and_the_head_does_not(self) -> None:
        speeds = Speeds(
            reading={100: [0.9, 0.7, 0.8]},
            writing={0: [Decoded(10, 0.8, 0.1), Decoded(10, 0.7, 0.2), Decoded(10, 0.9, 0.3)]},
        )
        costs = {
            "layer_bytes": 80,
            "prefill_operations": {"int8": 700, "f32": 60},
            "skipped_operations": {"int8": 30, "f32": 10},
        }
        found = estimate(speeds, costs, weight_bytes=100, measured_layers=8, layers=40)
        assert (found.measured_layers, found.layers, found.weight_bytes) == (8, 40, 100 + 4 * 80)
        # The last layer leaves out 40 operations of 800, which are 0.4 layers: 7.6 take 8 ms a token.
        assert found.prefill_seconds_per_layer[100] == pytest.approx(0.008 / 7.6)
        assert found.prefill_tokens_per_second[100] == pytest.approx(7.6 / 0.008 / 39.6)
        assert found.decode_seconds_per_layer[0] == pytest.approx(0.01)
        assert found.decode_tokens_per_second[0] == pytest.approx(1 / (0.4 + 0.02))

    def test_of_all_layers_nothing_is_new(self) -> None:
        speeds = Speeds({64: [0.5]}, {0: [Decoded(10, 0.8, 0.1)]})
        costs = _native.Engine.open(hub.resolve("demo"), threads=1).costs()
        found = estimate(speeds, costs, weight_bytes=100, measured_layers=8, layers=8)
        assert found.weight_bytes == 100
        assert found.prefill_tokens_per_second[64] == pytest.approx(128)
        assert found.decode_tokens_per_second[0] == pytest.approx(10 / 0.9)

    def test_command(self, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
        config = json.loads((golden.FOLDER / "dense_text" / "config.json").read_text())
        config.pop("layer_types")
        assert config["num_hidden_layers"] == 8
        for module in (benchmark, random_weights):
            monkeypatch.setattr(module, "shapes", lambda _: json.dumps(config))
        argv = ["bench", "--shapes", "0.8B", "--layers", "4", "--prompt", "16", "--new-tokens", "2"]
        assert main([*argv, "--rounds", "1", "--json"]) == 0
        printed = cast("dict[str, Any]", json.loads(capsys.readouterr().out))
        assert (printed["estimate"]["measured_layers"], printed["estimate"]["layers"]) == (4, 8)
        assert printed["weight_bytes"] < printed["estimate"]["weight_bytes"]
        assert set(printed["estimate"]["prefill_tokens_per_second"]) == {"16"}
        assert main([*argv, "--rounds", "1"]) == 0
        assert "estimated from 4 of 8 layers:" in capsys.readouterr().out

    def test_only_of_shapes(self, capsys: Captured) -> None:
        assert main(["bench", "demo", "--layers", "4"]) == 1
        assert capsys.readouterr().err == (
            "edgewise: layers: only random weights (--shapes) can be cut to some layers\n"
        )
