#!/usr/bin/env bash
# Builds the fuzz targets with the stable compiler, and runs each for some seconds, from valid files on.
#
#     fuzz/run.sh [SECONDS [TARGET...]]
#
# The flags are those of cargo-fuzz without a sanitizer, which would need a nightly compiler. Outside of kernels and the mapping
# of files the crate is safe code, so what there is to find are panics, endless loops, and memory taken on a file's word; the
# targets check for all three. An input that did it stands in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-20}
targets=(safetensors gguf config checkpoint)
if [ $# -gt 1 ]; then targets=("${@:2}"); fi

host=$(rustc -vV | sed -n 's/^host: //p')
flags=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
# With a target named, the flags leave out build scripts and macros, which would not link with them.
RUSTFLAGS="${flags[*]}" cargo build --quiet --release --locked --target "$host"
python3 make_corpus.py corpus
for target in "${targets[@]}"; do
    mkdir -p "artifacts/$target"
    log="artifacts/$target.log"
    "target/$host/release/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" -dict=dictionary \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=2048 >"$log" 2>&1 || {
        tail -n 40 "$log"
        echo "fuzz: $target failed, the input is in fuzz/artifacts/$target" >&2
        exit 1
    }
    echo "fuzz: $target, $(sed -n 's/^Done \([0-9]* runs in [0-9]* second(s)\)$/\1/p' "$log"), nothing found"
done
