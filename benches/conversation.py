"""Time to the first token of a late turn: with the conversation's history, and of as long a turn without.

    python benches/conversation.py MODEL [--turns 20] [--words 60] [--answer 64] [--repeat 3] [--threads N]

The history is rendered anew by the chat template each turn, with thinking on, so that earlier thoughts are
left out. Beside it, `no cache` is the same turn on a model that keeps nothing, and `no history` a first turn
of as many words. What attention over the history costs is in the first and not in the last; it is measured
apart, by a profile of the same turns. Figures are medians, in seconds; all are measured in turns.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from edgewise import Model, Result
from edgewise.chat import split_reasoning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--words", type=int, default=60, help="words of each question")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-dtype", default="auto")
    arguments = parser.parse_args()
    models = {
        "cached": Model.from_pretrained(
            arguments.model, threads=arguments.threads, kv_dtype=arguments.kv_dtype
        ),
        "no cache": Model.from_pretrained(
            arguments.model, threads=arguments.threads, kv_dtype=arguments.kv_dtype, cache_bytes=0
        ),
    }
    messages = history(models["cached"], arguments)
    rows: dict[str, list[Result]] = {"cached": [], "no history": [], "no cache": []}
    attention: dict[str, list[float]] = {"cached": [], "no history": []}
    for _ in range(arguments.repeat):
        # Each time the last turn is asked anew with other words, after the same history.
        question = {"role": "user", "content": words(arguments.words, 1000 + len(rows["cached"]))}
        rows["cached"].append(ask(models["cached"], [*messages, question], 1))
        rows["no history"].append(ask(models["no cache"], [question], 1))
        rows["no cache"].append(ask(models["no cache"], [*messages, question], 1))
        question = {"role": "user", "content": words(arguments.words, 2000 + len(rows["cached"]))}
        attention["cached"].append(attention_seconds(models["cached"], [*messages, question]))
        attention["no history"].append(attention_seconds(models["no cache"], [question]))
    print(f"{arguments.model}, turn {arguments.turns}, {models['cached'].threads} threads")
    for name, results in rows.items():
        last = results[-1].usage
        seconds = statistics.median(result.timings.time_to_first_token for result in results)
        print(
            f"{name:10}  first token after {seconds:8.3f} s   prompt {last.prompt_tokens:5d}   "
            f"computed {last.prompt_tokens - last.cached_tokens:5d}"
        )
    with_history, without = (
        statistics.median(result.timings.time_to_first_token for result in rows[name])
        for name in ("cached", "no history")
    )
    own, others = (statistics.median(attention[name]) for name in ("cached", "no history"))
    aside = (with_history - own) / (without - others)
    print(f"with history / without: {with_history / without:.2f}")
    print(f"attention alone: {own:.3f} s with history, {others:.3f} s without; the rest: {aside:.2f}")
    print(f"cache: {models['cached'].cached_bytes / 1e6:.0f} MB")


def history(model: Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A conversation up to the last turn's question."""
    messages: list[dict[str, Any]] = []
    computed = total = 0
    for turn in range(1, arguments.turns):
        messages.append({"role": "user", "content": words(arguments.words, turn)})
        result = ask(model, messages, arguments.answer)
        computed += result.usage.total_tokens - result.usage.cached_tokens
        total += result.usage.total_tokens
        thought, said = split_reasoning(result.text, True)
        messages.append({"role": "assistant", "content": said or "Yes.", "reasoning_content": thought})
    print(f"history: {total} tokens read and written over all turns, {computed} of them computed")
    return messages


def attention_seconds(model: Model, messages: list[dict[str, Any]]) -> float:
    """What attention takes of a turn's first token."""
    model._engine.start_profile()
    ask(model, messages, 1)
    return model._engine.stop_profile()["attention"]["seconds"]


def words(count: int, seed: int) -> str:
    """Some text without meaning that no other turn has."""
    return f"Turn {seed}: " + " ".join(f"w{(seed * 131 + i * 17) % 997}" for i in range(count))


def ask(model: Model, messages: list[dict[str, Any]], tokens: int) -> Result:
    options: dict[str, Any] = {"enable_thinking": True, "temperature": 0, "ignore_eos": True}
    return model.generate(messages, max_new_tokens=tokens, **options)


if __name__ == "__main__":
    main()
