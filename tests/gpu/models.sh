#!/usr/bin/env bash
# The speed of published models on a GPU, in under ten minutes: decoding, the loader, steps and
# training end to end, each against its peer, with random weights and made photos. Rows are appended
# to one CSV; their table comes last. Needs all of the project's dependencies; it itself need not be
# installed.
#
#   tests/gpu/models.sh [FILE.csv]       on a machine with a GPU
#   VSE_REHEARSE=1 tests/gpu/models.sh   the same steps at tiny sizes, on a CPU too
#
# Every step runs, whatever became of the one before it; the exit code is 1 where one failed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/shards${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
out="${1:-$(mktemp -d)/results.csv}"
options=(--out "$out")
if [[ "${VSE_REHEARSE:-}" == 1 ]]; then
    options+=(--small model.image.size=64 data.global_batch=20)
fi
failed=()

bench() { # SECONDS STAGE... [KEY=VALUE...]: at most so long
    local limit=$1
    shift
    echo "== $*, ${SECONDS} s after the start"
    timeout "$limit" "$python" -m vse_scale.cli bench "$@" "${options[@]}" || failed+=("$*")
}

# The contenders' weights lie on the GPU together; pairs are as many as float32 has room for on 80 GB.
bench 100 decode loader model.image.size=224
bench 100 step model.image.backbone=resnet50 model.image.size=224
bench 120 step model.image.backbone=resnet152 model.image.size=512 data.global_batch=24
bench 120 step model.image.backbone=resnext101_32x8d model.image.size=512 data.global_batch=24
bench 150 train model.image.backbone=resnet50 model.image.size=224
"$python" -c '
import sys
from pathlib import Path
from vse_scale.bench import rows, table
print(table.text(rows.read(Path(sys.argv[1]))))' "$out" || failed+=(table)
echo "Results are in $out, after ${SECONDS} seconds. Failed: ${failed[*]:-nothing}."
((${#failed[@]} == 0))
