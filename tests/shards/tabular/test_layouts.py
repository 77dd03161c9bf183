"""Layouts that public reports and data sets show, each with its address."""

from __future__ import annotations

import io
import json

import pyarrow
import pytest
from pyarrow import parquet

from vse_shards.errors import SourceError


def as_parquet(columns):
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


TURNS = [
    {"from": "human", "value": "What is it?"},
    {"from": "gpt", "value": "<b>A</b> dog."},
]
# Address, kind, name, content, captions by image.
LAYOUTS = [
    (
        "https://github.com/mlfoundations/open_clip/issues/789: filepath and title, with commas",
        "csv", "train.csv", "filepath,title\na.jpg,A dog\nb.jpg,A cat\n",
        {"a.jpg": ["A dog"], "b.jpg": ["A cat"]},
    ),
    (
        "https://github.com/huggingface/datasets/issues/6777: caption, image and a second picture",
        "jsonl", "metadata1000.jsonl",
        lines({"caption": "a shirt", "image": "a.jpg", "gaussian_padded_image": "p/a.jpg"}),
        {"a.jpg": ["a shirt"]},
    ),
    (
        "https://github.com/modelscope/DiffSynth-Studio/issues/1190: metadata.csv of image, prompt",
        "csv", "metadata.csv", 'image,prompt\na.jpg,"a cat, sitting"\n',
        {"a.jpg": ["a cat, sitting"]},
    ),
    (
        "https://github.com/pandas-dev/pandas/issues/22140: a cell that is a quote alone",
        "csv --quoting none", "sample.txt", 'image|caption|n\na.jpg|one|1\nb.jpg|"|2\nc.jpg|x|3\n',
        {"a.jpg": ["one"], "b.jpg": ['"'], "c.jpg": ["x"]},
    ),
    (
        "https://github.com/pytorch/text/issues/612: lines of a TSV that begin with a quote",
        "tsv --quoting none", "t.tsv",
        'image\ttext\na.jpg\tfirst\nb.jpg\t"Second\nc.jpg\tThird "sentence"\n',
        {"a.jpg": ["first"], "b.jpg": ['"Second'], "c.jpg": ['Third "sentence"']},
    ),
    (
        "https://github.com/rom1504/img2dataset/issues/244: COCO's parquet, images downloaded",
        "parquet", "mscoco.parquet",
        as_parquet({"filepath": ["a.jpg", "a.jpg"], "TEXT": ["one", "two"], "URL": ["x", "y"]}),
        {"a.jpg": ["one", "two"]},
    ),
    (
        "https://github.com/LLaVA-VL/LLaVA-NeXT/issues/459: conversations without <image>",
        "json", "geomverse.json",
        json.dumps([{"id": "cauldron/1.png", "conversations": TURNS, "image": "v/a.jpg"}]),
        {"v/a.jpg": ["<b>A</b> dog."]},
    ),
    (
        "https://github.com/victorchall/EveryDream2trainer data/resolver.py: image and caption",
        "json", "data.json",
        json.dumps([{"image": "a.jpg", "caption": "one"}, {"image": "a.jpg", "caption": "two"}]),
        {"a.jpg": ["one", "two"]},
    ),
    (
        "https://huggingface.co/docs/datasets/image_dataset: file_name in metadata.parquet",
        "parquet", "metadata.parquet", as_parquet({"file_name": ["a.jpg"], "text": ["w"]}),
        {"a.jpg": ["w"]},
    ),
    (
        "https://huggingface.co/datasets/nlphuji/flickr30k: lists as text, split and sentids",
        "csv", "flickr_annotations_30k.csv",
        'raw,sentids,split,filename,img_id\n"[""one"", ""two""]","[0, 1]",test,a.jpg,0\n',
        {0: ["one", "two"]},
    ),
    (
        "https://huggingface.co/datasets/jxie/flickr8k: caption_0 to caption_4",
        "parquet --column caption=caption_0,caption_1", "test.parquet",
        as_parquet({"image": ["a.jpg"], "caption_0": ["one"], "caption_1": ["two"]}),
        {"a.jpg": ["one", "two"]},
    ),
    (
        "https://github.com/salesforce/LAVIS coco_karpathy_test.json: caption is a list, no ids",
        "json", "coco_karpathy_test.json",
        json.dumps([{"image": "val2014/a.jpg", "caption": ["one", "two"]}]),
        {"val2014/a.jpg": ["one", "two"]},
    ),
    (
        "https://github.com/layumi/Image-Text-Embedding CUHK-PEDES reid_raw.json",
        "json", "reid_raw.json",
        json.dumps([{"split": "train", "captions": ["one", "two"], "file_path": "a.jpg", "id": 1}]),
        {"a.jpg": ["one", "two"]},
    ),
    (
        "https://github.com/NjtechCVLab/RSTPReid-Dataset data_captions.json",
        "json", "data_captions.json",
        json.dumps([{"id": 0, "img_path": "a.jpg", "captions": ["one"], "split": "val"}], indent=4),
        {"a.jpg": ["one"]},
    ),
    (
        "https://github.com/igorbrigadir/DownloadConceptualCaptions: the caption first, no header",
        "csv", "Validation_GCC.tsv", "a dog on the grass\tv/1.jpg\na cat, two cats\tv/2.jpg\n",
        {"v/1.jpg": ["a dog on the grass"], "v/2.jpg": ["a cat, two cats"]},
    ),
    (
        "https://github.com/hiyouga/LLaMA-Factory data/mllm_demo.json: role, content and images",
        "jsonl", "chat.jsonl",
        lines({"images": ["a.jpg"], "conversations": [
            {"role": "user", "content": "?"}, {"role": "assistant", "content": "A dog."}]}),
        {"a.jpg": ["A dog."]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("address", "kind", "name", "content", "captions"), LAYOUTS, ids=[one[0] for one in LAYOUTS]
)
def test_a_public_layout_gives_its_captions(put, read, address, kind, name, content, captions):
    kind, _, option = kind.partition(" ")
    request = {}
    if option.startswith("--quoting"):
        request["quoting"] = option.split(" ")[1]
    elif option:
        request["columns"] = dict([option.split(" ")[1].split("=")])
    found = read(kind, put(name, content), **request)

    assert found.captions == captions
    assert found.problems == []


def test_pandas_index_column_and_excels_trailing_commas(put, read):
    """pandas.to_csv writes its index without a name; Excel pads rows to the widest."""
    found = read("csv", put("t.csv", ",image,caption,,\n0,a.jpg,one,,\n1,b.jpg,two,,\n"))

    assert found.captions == {"a.jpg": ["one"], "b.jpg": ["two"]}


def test_kaggles_broken_row_of_flickr30k_is_the_only_loss(put, read):
    """hsankesara/flickr-image-dataset: the row 2199200615.jpg, 4 has no second pipe."""
    header = "image_name| comment_number| comment\n"
    rows = [f'a.jpg| {n}| Two "young" guys , {n} .\n' for n in range(4)]
    found = read("csv", put("results.csv", header + "".join(rows) + "a.jpg| 4   A dog runs\n"))

    assert found.captions == {"a.jpg": [f'Two "young" guys , {n} .' for n in range(4)]}
    assert found.reasons == [("malformed row", "has 2 cells; the header names more")]


def test_a_results_file_of_coco_has_no_images(put, read):
    """github.com/cocodataset/cocoapi results/captions_val2014_fakecap_results.json."""
    found = read(
        "json", put("results.json", '[{"image_id": 404464, "caption": "black and white"}]')
    )

    assert found.rows == []
    assert found.problems[0].detail.endswith("not a path; keys are image_id, caption")


@pytest.mark.parametrize("codec", ["gb18030", "cp1251", "shift_jis"])
def test_text_of_other_alphabets_is_not_taken_for_windows_1252(put, read, codec):
    """hiyouga/LlamaFactory#7016, kijai/ComfyUI-FluxTrainer#14: bytes that are no UTF-8."""
    words = {"gb18030": "一只狗在雪地里跑", "cp1251": "собака бежит", "shift_jis": "犬が走る"}[
        codec
    ]
    path = put("t.csv", b"image,caption\n" + f"a.jpg,{words}\n".encode(codec))
    found = read("csv", path)

    assert found.rows == []
    assert found.reasons == [("malformed row", "not UTF-8")]
    assert "convert it with iconv -f ENCODING -t UTF-8" in found.notes
    row = f'{{"image": "a.jpg", "caption": "{words}"}}\n'
    assert "convert it with iconv" in read("jsonl", put("t.jsonl", (row * 2).encode(codec))).notes
    with pytest.raises(SourceError, match=r"t\.json: is not UTF-8: convert it with iconv"):
        read("json", put("t.json", f"[{row}]".encode(codec)))
    path.write_text(path.read_text(codec), "utf-8")  # as iconv does
    assert read("csv", path).captions == {"a.jpg": [words]}


def test_rows_of_image_and_url_use_the_file(put, read):
    """github.com/igorbrigadir/DownloadConceptualCaptions: url beside the file that was saved."""
    found = read("csv", put("t.tsv", "caption\turl\tfile\na dog\thttp://h/a.jpg\ttraining/1\n"))

    assert found.captions == {"training/1": ["a dog"]}


def test_tables_of_urls_alone_are_refused(put, read):
    with pytest.raises(SourceError, match="img2dataset does"):
        read("parquet", put("t.parquet", as_parquet({"URL": ["https://h/a.jpg"], "TEXT": ["w"]})))


@pytest.mark.parametrize(
    "table",
    [
        {"image": {"0": "a.jpg", "1": "b.jpg"}, "caption": {"0": "one", "1": "two"}},
        {"image": ["a.jpg", "b.jpg"], "caption": ["one", "two"]},
        {"columns": ["image", "caption"], "index": [0], "data": [["a.jpg", "one"]]},
    ],
    ids=["by index", "lists", "split"],
)
def test_a_table_by_columns_is_refused(put, read, table):
    """pandas' ``to_json`` and ``to_dict`` in other orientations (pandas-dev/pandas#12866)."""
    with pytest.raises(SourceError, match=r"is a table by columns; write a list of rows"):
        read("json", put("t.json", json.dumps(table)))
