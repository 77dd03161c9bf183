# docs/photos.md, "From zero to search": which of my photos fit these words?
vse-scale embed --model runs/mine --images photos --out runs/album
vse-scale search --index runs/album "a red circle" --html found.html
vse-scale search --index runs/album --image photos/0001.jpg
