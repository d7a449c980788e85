"""Recall over the longest distance the demo was trained for: a small KV cache changes no answer."""

from __future__ import annotations

from random import Random

from edgewise import Model

NAMES = [
    *("Ada", "Alan", "Barbara", "Claude", "Dennis", "Edsger", "Frances", "Grace"),
    *("Hedy", "Ken", "Linus", "Margaret", "Niklaus", "Radia", "Tim", "Vint"),
]
FACTS = 7
"""The most in a question of `tools/demo/data.py`: 81 tokens, more than a page of the KV cache."""
QUESTIONS = 10 * FACTS


def ask(index: int) -> tuple[str, str]:
    """A question and its answer; each place is asked for equally often."""
    rng = Random(f"needle {index}")
    facts = {name: f"{name}'s code is {rng.randint(100, 999)}." for name in rng.sample(NAMES, FACTS)}
    asked = list(facts)[index % FACTS]
    return f"{' '.join(facts.values())} What is {asked}'s code?", facts[asked]


def answers(kv_dtype: str) -> list[str]:
    model = Model.from_pretrained("demo", kv_dtype=kv_dtype, cache_bytes=0)
    options = {"temperature": 0, "enable_thinking": False, "max_new_tokens": 30}
    return [model.generate(ask(index)[0], **options).text for index in range(QUESTIONS)]  # type: ignore[arg-type]


def test_small_caches_recall_what_f32_recalls() -> None:
    wanted = answers("f32")
    right = sum(found == ask(index)[1] for index, found in enumerate(wanted))
    assert right > QUESTIONS / 3, "else there would be little to lose; by chance it were one in 900"
    for kv_dtype in ["bf16", "int8"]:
        assert answers(kv_dtype) == wanted, kv_dtype
