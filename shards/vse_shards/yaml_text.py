"""YAML that others wrote: plain values, of bounded size once its aliases are written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vse_shards.plain_files import read_plain

MOST_BYTES = 4 << 20
MOST_DEPTH = 50
MOST_NODES = 1_000_000  # with each alias counted as what it stands for
_LONGEST = 1000  # characters of a number or a date
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT = "tag:yaml.org,2002:str"


def parse_yaml(text: str | bytes) -> Any:
    """Return the content of a YAML text.

    Raises:
        ValueError: it is not YAML of plain values, longer than `MOST_BYTES`, deeper than
            `MOST_DEPTH`, or larger than `MOST_NODES` once its aliases are written out.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"has {len(text):,} bytes of YAML, limit {MOST_BYTES:,}")
    try:
        _check_depth(text)
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error.context}"[:300]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    # What PyYAML makes of a value that is not of the type its tag says.
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"a value is not of its tag ({error})") from None


def read_yaml(path: Path | str) -> Any:
    """Return the content of a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: as of `parse_yaml`, or it is no regular file.
    """
    return parse_yaml(read_plain(path, MOST_BYTES))


def _check_depth(text: str | bytes) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError(f"is nested deeper than {MOST_DEPTH}, the limit")


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return the number of nodes and the depth of a graph, its aliases written out."""
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise ValueError("an alias leads to what holds it")
        return measured
    known[id(node)] = None
    size, depth = 1, 0
    if isinstance(node, yaml.ScalarNode):
        if node.tag != _TEXT and len(node.value) > _LONGEST:
            raise ValueError(f"a number has {len(node.value):,} characters, limit {_LONGEST:,}")
    else:
        pairs = isinstance(node, yaml.MappingNode)
        for inner in (one for pair in node.value for one in (pair if pairs else (pair,))):
            below = _measure(inner, known)
            size, depth = size + below[0], max(depth, below[1] + 1)
    if size > MOST_NODES or depth > MOST_DEPTH:
        raise ValueError(
            f"its aliases stand for more than {MOST_NODES:,} values, or are deeper than "
            f"{MOST_DEPTH}, the limits; write them out"
        )
    known[id(node)] = size, depth
    return size, depth
