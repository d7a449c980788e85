"""Cut a byte-level BPE tokenizer down to what a set of recorded strings can reach, ids unchanged.

    python tools/prune_tokenizer.py TOKENIZER GOLDEN OUT

BPE applies, again and again, the merge of lowest rank among those that fit. A merge can fit a string only if
its result is part of one of the string's pre-tokens. Keeping all such merges, in their order, therefore gives
the same steps and the same ids as the full table, and leaves in every merge that might wrongly be taken. The
result is loaded again and checked against each recorded row.

Ids are not contiguous any more. The added tokens are therefore listed in the model's vocabulary too:
`tokenizers` would number them anew otherwise.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

Json = dict[str, Any]


def read_cases(golden: Path) -> tuple[Json, Json]:
    """The recorded tokenizer and chat template cases."""
    return (
        json.loads((golden / "tokenizer" / "case.json").read_text(encoding="utf-8")),
        json.loads((golden / "chat_template" / "case.json").read_text(encoding="utf-8")),
    )


def recorded_texts(tokens: Json, chats: Json) -> set[str]:
    texts = {row["text"] for row in tokens["rows"]} | {row["decoded"] for row in tokens["rows"]}
    texts |= {case["full_decode"] for case in tokens["stream"]}
    return texts | {row["prompt"] for row in chats["rows"] if "prompt" in row}


def recorded_ids(tokens: Json, chats: Json) -> set[int]:
    rows = [*tokens["rows"], *tokens["stream"], *(row for row in chats["rows"] if "ids" in row)]
    return {token for row in rows for token in row["ids"]}


def pretokens(tokenizer: Tokenizer, added: Iterable[str], texts: Iterable[str]) -> set[str]:
    """All pre-tokens of the texts between added tokens, in the byte alphabet of the vocabulary."""
    cuts = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))))
    pieces: set[str] = set()
    for text in texts:
        for span in cuts.split(text):
            normal = tokenizer.normalizer.normalize_str(span)
            pieces.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    return pieces


def substrings(pieces: Iterable[str], longest: int) -> set[str]:
    def of_one(piece: str) -> Iterator[str]:
        for start in range(len(piece)):
            for end in range(start + 2, min(len(piece), start + longest) + 1):
                yield piece[start:end]

    return {part for piece in pieces for part in of_one(piece)}


def reduce(full: Json, parts: set[str], ids: set[int]) -> Json:
    """The tokenizer with only the merges whose result is among `parts`, and what these and `ids` need."""
    vocab: dict[str, int] = full["model"]["vocab"]
    merges = [pair for pair in full["model"]["merges"] if "".join(pair) in parts]
    needed = {token for pair in merges for token in (*pair, "".join(pair))}
    needed |= {token for token, index in vocab.items() if len(token) == 1 or index in ids}
    kept = {token: index for token, index in vocab.items() if token in needed}
    kept |= {token["content"]: token["id"] for token in full["added_tokens"]}
    return full | {"model": full["model"] | {"vocab": kept, "merges": merges}}


def check(path: Path, tokens: Json, chats: Json) -> int:
    """Every row must come out as recorded; returns the number of rows."""
    tokenizer = Tokenizer.from_file(str(path))
    rows = [(row["text"], row["ids"]) for row in tokens["rows"]]
    rows += [(row["prompt"], row["ids"]) for row in chats["rows"] if "ids" in row]
    for text, ids in rows:
        got = tokenizer.encode(text, add_special_tokens=False).ids
        if got != ids:
            raise SystemExit(f"{text!r} gives {got}, recorded {ids}")
    decoded = [(row["ids"], row["decoded"]) for row in tokens["rows"]]
    decoded += [(case["ids"], case["full_decode"]) for case in tokens["stream"]]
    for ids, text in decoded:
        shown = tokenizer.decode(ids, skip_special_tokens=False)
        if shown != text:
            raise SystemExit(f"{ids} gives {shown!r}, recorded {text!r}")
    return len(rows) + len(decoded)


def prune(source: Path, golden: Path, out: Path) -> None:
    full: Json = json.loads(source.read_text(encoding="utf-8"))
    tokens, chats = read_cases(golden)
    added = [token["content"] for token in full["added_tokens"]]
    pieces = pretokens(Tokenizer.from_file(str(source)), added, recorded_texts(tokens, chats))
    longest = max(len(token) for token in full["model"]["vocab"])
    reduced = reduce(full, substrings(pieces, longest), recorded_ids(tokens, chats))
    out.write_text(json.dumps(reduced, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    rows = check(out, tokens, chats)
    entries, merges = len(reduced["model"]["vocab"]), len(reduced["model"]["merges"])
    print(f"{out}: {entries} entries, {merges} merges, {rows} recorded rows come out the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="the full tokenizer.json")
    parser.add_argument(
        "golden", type=Path, help="folder with tokenizer/case.json and chat_template/case.json"
    )
    parser.add_argument("out", type=Path, help="the reduced tokenizer.json to write")
    options = parser.parse_args()
    prune(options.tokenizer, options.golden, options.out)


if __name__ == "__main__":
    main()
