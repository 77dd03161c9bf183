#!/usr/bin/env bash
# Builds the wheels of vse-scale, vse-shards and vse-kernels into dist/, from what is committed, and
# tries each in an environment of its own, away from the repository.
#
# Usage: launch/release.sh PYTHON [option of pip install]...
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$1
options=("${@:2}" --quiet --disable-pip-version-check -c "$root/constraints.txt")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A folder build/ of an earlier release would be packed as well, so not in place.
mkdir "$scratch/source"
git -C "$root" archive HEAD | tar -x -C "$scratch/source"
rm -rf "$root/dist"
for part in . shards kernels; do
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps -w "$root/dist" \
    "$scratch/source/$part"
done
versions=$(printf '%s\n' "$root"/dist/*.whl | sed -E 's/.*-([^-]+)-py3-none-any\.whl/\1/' | sort -u)
if [ "$(wc -l <<<"$versions")" != 1 ]; then
  echo "release: the wheels are of versions ${versions//$'\n'/ and }; give all three the same" >&2
  exit 2
fi
if ! grep -qF "## [$versions]" "$root/CHANGELOG.md"; then
  echo "release: CHANGELOG.md has no section [$versions]; name the one of unreleased changes so" >&2
  exit 2
fi

# A new environment with a wheel, and nothing of this process's in it.
environment() {
  "$python" -m venv "$scratch/$1"
  "$scratch/$1/bin/pip" install "${options[@]}" "$2"
}
cd "$scratch"
export PYTHONSAFEPATH=1
unset PYTHONPATH

echo "vse-shards: a dataset of 240 drawn scenes"
environment shards "$(echo "$root"/dist/vse_shards-*.whl)"
shards/bin/vse-shards demo --images 240 --out scenes
shards/bin/vse-shards build --source jsonl --input scenes/captions.jsonl --images scenes --out data
shards/bin/vse-shards verify data --deep

echo "vse-kernels: the pooling and its gradient"
environment kernels "$(echo "$root"/dist/vse_kernels-*.whl)"
kernels/bin/python - <<'PYTHON'
import torch
from vse_kernels import gpo_pool

features = torch.randn(2, 5, 8, requires_grad=True)
weights, rows = torch.full((1, 5), 0.2), torch.zeros(2, dtype=torch.long)
pooled = gpo_pool(features, torch.tensor([5, 5]), weights, rows)
pooled.sum().backward()
torch.testing.assert_close(pooled, features.mean(1))
torch.testing.assert_close(features.grad, torch.full((2, 5, 8), 0.2))
PYTHON

echo "vse-scale: search without what training needs"
environment base "$(echo "$root"/dist/vse_scale-*.whl)"
base/bin/vse-scale recipes demo >demo.yaml

echo "vse-scale[train]: three steps of the demonstration's recipe"
environment train "$(echo "$root"/dist/vse_scale-*.whl)[train]"
train/bin/vse-scale train --ranks 2 --config demo data.path=data data.global_batch=32 \
  train.max_steps=3 eval.split=null run.dir=run
base/bin/vse-scale embed --model run --images scenes/images --out index
base/bin/vse-scale search --index index "a big red circle" --in images
echo "release: dist/ has the wheels of $versions"
