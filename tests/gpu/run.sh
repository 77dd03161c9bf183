#!/usr/bin/env bash
# Everything that needs a GPU, in under eight minutes: the tests, then the benchmarks, which append
# to one CSV and print their table.
#
#   tests/gpu/run.sh [FILE.csv]        on a machine with a GPU
#   VSE_REHEARSE=1 tests/gpu/run.sh    the same steps on CPU: interpreter and tiny sizes
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
options=()
if [[ "${VSE_REHEARSE:-}" == 1 ]]; then
    export TRITON_INTERPRET=1
    options=(--small --repeats 2)
fi
out="${1:-$(mktemp -d)/results.csv}"

"$python" -m pytest tests/gpu --timeout 300
for benchmark in gpo hardest ranks; do
    "$python" "kernels/benchmarks/$benchmark.py" "${options[@]}" --out "$out"
done
echo "Results are in $out, after ${SECONDS} seconds."
