#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes: the tests, then the benchmarks, which append
# to one CSV, and their table last. Needs Python with torch, triton, numpy, pytest, pytest-timeout
# and hypothesis; nothing has to be installed of the project itself.
#
#   tests/gpu/run.sh [FILE.csv]        on a machine with a GPU
#   VSE_REHEARSE=1 tests/gpu/run.sh    the same steps on CPU: interpreter and tiny sizes
#
# Every step runs, whatever became of the one before it; the exit code is 1 where one failed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Said in so many words: some virtual machines hide the files that tests/conftest.py looks for.
export TRITON_INTERPRET=0
options=()
if [[ "${VSE_REHEARSE:-}" == 1 ]]; then
    export TRITON_INTERPRET=1
    options=(--small --repeats 2)
fi
out="${1:-$(mktemp -d)/results.csv}"
failed=()

step() { # SECONDS NAME COMMAND...: at most so long
    local limit=$1 name=$2
    shift 2
    echo "== $name, ${SECONDS} s after the start"
    timeout "$limit" "$@" || failed+=("$name")
}

step 240 tests "$python" -m pytest tests/gpu -m gpu --timeout 120 --durations 5
for benchmark in gpo hardest contrastive ranks; do
    step 80 "$benchmark" "$python" "kernels/benchmarks/$benchmark.py" "${options[@]}" --out "$out"
done
step 20 table "$python" kernels/benchmarks/table.py "$out"
echo "Results are in $out, after ${SECONDS} seconds. Failed: ${failed[*]:-nothing}."
((${#failed[@]} == 0))
