"""`edgewise info`: what this computer offers, and what a model needs of it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import __version__, _native
from edgewise.cli import terminal
from edgewise.cli.arguments import add_opening, open_model

if TYPE_CHECKING:
    from edgewise.cli.arguments import Commands

PLANNED_LENGTHS = (4096, 32768)


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser = commands.add_parser(
        "info",
        help="show what this computer offers and a model needs",
        description="Shows what this computer offers and, if one is named, what a model needs.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="folder, file, hub id or demo")
    add_opening(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print what is known, for a person or as JSON."""
    facts: dict[str, Any] = {"computer": computer()}
    if arguments.model is not None:
        model = open_model(arguments)
        facts["model"] = {"name": model.name, **model.info()}
        facts["model"]["memory_plan"] = memory_plan(facts["model"])
        facts["model"]["streaming"] = streaming(facts["model"], facts["computer"]["available_memory_bytes"])
    print(json.dumps(facts, indent=1) if arguments.json else _text(facts))
    return 0


def computer() -> dict[str, Any]:
    """Return what this build and this computer offer."""
    return {
        "version": __version__,
        "build": _native.build_info(),
        "tiers": _native.tiers(),
        "tier": _native.active_tier(),
        "threads": _native.available_threads(),
        "memory_bytes": memory(),
        "available_memory_bytes": _native.available_memory(),
    }


def memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes of memory in all, `None` where the system does not tell."""
    if meminfo.exists():
        entries = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        entry = entries.get("MemTotal")
        return None if entry is None else int(entry.split()[0]) * 1024
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def memory_plan(model: dict[str, Any]) -> list[dict[str, int]]:
    """Return the bytes that texts of some lengths need, up to the longest the model can hold.

    `sequence` is with the KV cache's own type, the others are what it would be with each type: a constant
    part and so many bytes a token.
    """
    longest = model["context_length"]
    lengths = sorted({length for length in PLANNED_LENGTHS if length < longest} | {longest})
    per_token = model["kv_bytes_per_token_by_dtype"]
    plan = []
    for tokens in lengths:
        sizes = {dtype: model["state_bytes"] + tokens * bytes_ for dtype, bytes_ in per_token.items()}
        sequence = sizes[model["kv_dtype"]]
        entry = {"tokens": tokens, "sequence": sequence, "total": model["weight_bytes"] + sequence}
        plan.append(entry | {f"sequence_{dtype}": size for dtype, size in sizes.items()})
    return plan


def streaming(model: dict[str, Any], available: int | None) -> dict[str, int]:
    """Return what of a model stays in memory, and what each token reads from disk because it cannot.

    All but the experts is used for every token and stays. What memory is left holds some of the experts;
    those chosen for a token are the others as often as chance has it. Texts are not counted.
    """
    experts, touched = model["expert_bytes"], model["expert_bytes_per_token"]
    used_by_all = model["weight_bytes"] - experts
    room = experts if available is None else min(max(available - used_by_all, 0), experts)
    missing = 1 - room / experts if experts else 0.0
    return {"resident": used_by_all + room, "per_token": round(touched * missing)}


def _text(facts: dict[str, Any]) -> str:
    parts = [_computer_text(facts["computer"])]
    if "model" in facts:
        parts.append(_model_text(facts["model"]))
    return "\n\n".join(parts)


def _computer_text(computer: dict[str, Any]) -> str:
    known = [
        f"{terminal.size(number)} {word}"
        for word, number in (
            ("in all", computer["memory_bytes"]),
            ("free", computer["available_memory_bytes"]),
        )
        if number is not None
    ]
    rows = [
        ("edgewise", computer["version"]),
        ("instructions", f"{computer['tier']} (of {', '.join(computer['tiers'])}; EDGEWISE_ISA chooses)"),
        ("threads", threads_text(computer)),
        ("memory", ", ".join(known) or "unknown"),
    ]
    return _entries(rows)


def threads_text(computer: dict[str, Any]) -> str:
    """Return how many threads are used, and why so many."""
    return f"{computer['threads']}{_reason(computer['build'].get('thread_report'))}"


def _reason(report: dict[str, Any] | None) -> str:
    """Return why so many threads."""
    if report is None:
        return ""
    quota = report["quota"]
    limits = [f"{report['affinity']} CPUs allowed", f"{report['performance_cores']} fast cores"]
    limits += [] if quota is None else [f"control group allows {quota:g}"]
    return f" ({', '.join(limits)})"


def _model_text(model: dict[str, Any]) -> str:
    bits = 8 * model["weight_bytes"] / model["parameters"]
    rows = [
        ("model", f"{model['name']} ({model['model_type']})"),
        ("parameters", f"{terminal.count(model['parameters'])}, {bits:.1f} bits each"),
        ("weights", terminal.size(model["weight_bytes"])),
        *_expert_rows(model),
        ("file", f"{terminal.size(model['file_bytes'])}{_conversion(model.get('converted_from'))}"),
        ("context", f"{model['context_length']} tokens{_extension(model['yarn_factor'])}"),
        ("one text", f"{terminal.size(model['state_bytes'])} and {_per_token(model)}"),
        ("threads", str(model["threads"])),
    ]
    plan = [["memory for", "the text", "with weights", "text in bf16", "in int8"]] + [
        [
            f"{entry['tokens']} tokens",
            *(terminal.size(entry[name]) for name in ("sequence", "total", "sequence_bf16", "sequence_int8")),
        ]
        for entry in model["memory_plan"]
    ]
    formats = terminal.formats_table(model["formats"])
    return f"{_entries(rows)}\n\n{formats}\n\n{terminal.table(plan)}"


def _conversion(source: str | None) -> str:
    return "" if source is None else f" ({source}, converted in memory; `edgewise convert` writes it once)"


def _extension(factor: float | None) -> str:
    return "" if factor is None else f" (YaRN, factor {factor:g})"


def _expert_rows(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a mixture of experts touches, and reads from disk."""
    if not model["expert_bytes"]:
        return []
    size, plan = terminal.size, model["streaming"]
    touched = f"{size(model['expert_bytes'])}, of which a token uses {size(model['expert_bytes_per_token'])}"
    rows = [("experts", touched)]
    if plan["per_token"]:
        held = f"{size(plan['resident'])} in memory, about {size(plan['per_token'])} read from disk a token"
        rows.append(("streamed", held))
    return rows


def _per_token(model: dict[str, Any]) -> str:
    kinds = {model["kv_dtype"]: None, "bf16": None, "int8": None}
    sizes = [(kind, terminal.size(model["kv_bytes_per_token_by_dtype"][kind])) for kind in kinds]
    (own, size), *others = sizes
    rest = ", ".join(f"{kind}: {size}" for kind, size in others)
    return f"{size} a token ({own}; {rest})"


def _entries(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)
