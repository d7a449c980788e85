"""What `edgewise bench` prints of its measurements."""

from __future__ import annotations

from collections.abc import Mapping

from edgewise.benchmark import Breakdown, Estimate, MachineLimits, Measured, MeasuredMedia, Share
from edgewise.cli import terminal

_Row = list[str]


def text(measured: Measured) -> str:
    """Return all of it, in tables."""
    parts = [f"{measured.tier}, {measured.threads} threads", terminal.table(_aligned(_speeds(measured)))]
    if measured.estimate is not None:
        parts += _estimate(measured.estimate)
    if measured.limits is not None:
        parts += ["this machine at best", terminal.table(_limits([*measured.other_limits, measured.limits]))]
    for what, breakdown in measured.breakdown.items():
        parts += [_heading(what, breakdown), terminal.table(_breakdown(breakdown))]
    return "\n".join(parts)


def _speeds(measured: Measured) -> list[_Row]:
    rows = [
        ["weights", terminal.size(measured.weight_bytes)],
        ["open", _milliseconds(measured.open_seconds)],
        ["open to first token", _milliseconds(measured.first_token_seconds)],
    ]
    for length, rate in measured.prefill_tokens_per_second.items():
        share = _share(measured.prefill_shares, length, "INT8 arithmetic")
        rows.append([f"read {length} tokens", f"{rate:.1f} tokens/s", *share])
    for depth, rate in measured.decode_tokens_per_second.items():
        share = _share(measured.decode_shares, depth, "memory speed")
        share += [f"{_speed(measured.decode_shares[depth].limit)} then"] if share else []
        rows.append([f"write after {depth} tokens", f"{rate:.1f} tokens/s", *share])
    rows += _memory(measured.peak_memory_bytes)
    for size, seen in measured.media.items():
        rows += _media_rows(size, seen)
    return rows


def _share(shares: Mapping[int, Share], key: int, limit: str) -> _Row:
    return [f"{100 * shares[key].share:.0f} % of {limit}"] if key in shares else []


def _aligned(rows: list[_Row]) -> list[_Row]:
    """Fill rows up to the length of the longest."""
    width = max(map(len, rows))
    return [row + [""] * (width - len(row)) for row in rows]


def _media_rows(size: str, seen: MeasuredMedia) -> list[_Row]:
    steps = {
        "prepare": seen.prepare_seconds,
        "vision": seen.vision_seconds,
        "read": seen.prefill_seconds,
        "pixels to first token": seen.first_token_seconds,
    }
    text = seen.prompt_tokens - seen.tokens
    rows = [[f"see {size}", f"{seen.tokens} + {text} tokens"]]
    rows += [[f"  {step}", _milliseconds(seconds)] for step, seconds in steps.items()]
    return rows + [[f"  {name}", size] for name, size in _memory(seen.peak_memory_bytes)]


def _memory(peak: int | None) -> list[_Row]:
    return [] if peak is None else [["peak memory", terminal.size(peak)]]


def _estimate(estimate: Estimate) -> list[str]:
    rows = [["weights", terminal.size(estimate.weight_bytes), ""]]
    for length, rate in estimate.prefill_tokens_per_second.items():
        layer = 1e6 * estimate.prefill_seconds_per_layer[length]
        rows.append([f"read {length} tokens", f"{rate:.1f} tokens/s", f"{layer:.1f} µs a token and layer"])
    for depth, rate in estimate.decode_tokens_per_second.items():
        layer = 1e6 * estimate.decode_seconds_per_layer[depth]
        rows.append([f"write after {depth} tokens", f"{rate:.1f} tokens/s", f"{layer:.0f} µs a layer"])
    head = (
        f"the above is of {estimate.measured_layers} layers; "
        f"estimated from {estimate.measured_layers} of {estimate.layers} layers:"
    )
    return [head, terminal.table(rows)]


def _limits(limits: list[MachineLimits]) -> list[_Row]:
    rows = [["threads", "memory", "mapped file", "INT8", "f32"]]
    for each in limits:
        mapped = each.mapped_bytes_per_second
        rows.append(
            [
                str(each.threads),
                _speed(each.memory_bytes_per_second),
                "-" if mapped is None else _speed(mapped),
                f"{each.int8_operations_per_second / 1e12:.3g} TOPS",
                f"{each.f32_operations_per_second / 1e12:.3g} TFLOPS",
            ]
        )
    return rows


def _heading(what: str, breakdown: Breakdown) -> str:
    heading = f"{what} of {breakdown.tokens} tokens: {_milliseconds(breakdown.seconds)}"
    speed = breakdown.memory_bytes_per_second
    return heading if speed is None else f"{heading}, memory speed {_speed(speed)} then"


def _speed(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.1f} GB/s"


def _breakdown(breakdown: Breakdown) -> list[_Row]:
    rows = [["", "share", "time", "read", "speed", "arithmetic"]]
    for name, spent in sorted(breakdown.operations.items(), key=lambda item: -item[1].seconds):
        speed = _speed(spent.bytes / spent.seconds) if spent.bytes else ""
        arithmetic = f"{spent.operations / spent.seconds / 1e9:.0f} GOPS" if spent.operations else ""
        size = terminal.size(spent.bytes) if spent.bytes else ""
        time = _milliseconds(spent.seconds)
        rows.append([name, f"{100 * spent.share:.1f} %", time, size, speed, arithmetic])
    return rows


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
