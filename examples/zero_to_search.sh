#!/bin/sh
# From a folder of your photos, some of them with captions, to a page of those that fit a text.
#
# sh examples/zero_to_search.sh PHOTOS "a dog in the snow"
#
# Run it in the repository's folder. The first command takes minutes, and is done once.
set -e
photos=$1
shift
make photos PHOTOS="$photos"
[ -d runs/album ] || .venv/bin/vse-scale embed --model runs/photos --images "$photos" --out runs/album
.venv/bin/vse-scale search --index runs/album --top 8 --html found.html "$@"
