"""Parts are found by name: built in, from an installed package, or as module:Class."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from vse_shards.errors import PartError, UserError
from vse_shards.parts import Registry

GROUP = "vse_test.shapes"


@pytest.fixture
def registry() -> Registry[object]:
    # Built-in names lead into the standard library; "broken" leads nowhere.
    return Registry(
        "shape", GROUP, {"exact": "fractions:Fraction", "broken": "no_such_module:Class"}
    )


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a package as pip would install it."""
    (tmp_path / "vse_test_shapes.py").write_text(
        "class Round:\n    class Inner: ...\nclass Exact: ...\nnumber = 3\n"
    )
    (tmp_path / "vse_test_raises.py").write_text("raise RuntimeError('needs\\na license')\n")
    info = tmp_path / "vse_test_shapes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vse-test-shapes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nround = vse_test_shapes:Round\nexact = vse_test_shapes:Exact\n"
        "gone = vse_test_shapes:Gone\nraises = vse_test_raises:Any\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in ("vse_test_shapes", "vse_test_raises"):
        sys.modules.pop(module, None)


def test_a_built_in_part_is_found_and_listed(registry: Registry[object]) -> None:
    assert registry.find("exact") is Fraction
    assert registry.names() == ("exact", "broken")


def test_a_name_of_a_family_stands_for_all_of_it() -> None:
    registry = Registry("shape", GROUP, {"exact/NAME": "fractions:Fraction"})
    assert registry.find("exact/half") is registry.find("exact/half/whole") is Fraction
    for other in ("exact", "exactly/half", "half"):
        with pytest.raises(PartError, match="Choose exact/NAME"):
            registry.find(other)


def test_a_built_in_part_is_imported_only_when_it_is_chosen(registry: Registry[object]) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry.find("broken")


def test_a_part_of_an_installed_package_is_found(registry: Registry[object], outside: Path) -> None:
    assert registry.find("round").__name__ == "Round"


def test_an_installed_package_does_not_replace_a_built_in_part(
    registry: Registry[object], outside: Path
) -> None:
    assert registry.find("exact") is Fraction


@pytest.mark.parametrize("name", ["vse_test_shapes:Round", "vse_test_shapes:Round.Inner"])
def test_a_part_is_found_as_module_and_class(
    registry: Registry[object], outside: Path, name: str
) -> None:
    assert registry.find(name).__qualname__ == name.partition(":")[2]


def test_two_packages_that_offer_one_name_are_refused(
    registry: Registry[object], outside: Path
) -> None:
    info = outside / "vse_test_other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vse-test-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nround = vse_test_shapes:Exact\n")
    with pytest.raises(PartError, match=r"shapes:Exact and vse_test_shapes:Round; give the one"):
        registry.find("round")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "exakt",
            "shape 'exakt' is not known; did you mean 'exact'? Choose exact, broken, gone, raises, "
            "round, or give a class of your own as module:Class",
        ),
        (
            "xyz",
            "shape 'xyz' is not known. Choose exact, broken, gone, raises, round, or give a class "
            "of your own as module:Class",
        ),
        (
            "gone",
            "shape 'gone' (vse_test_shapes:Gone) cannot be imported: AttributeError: module "
            "'vse_test_shapes' has no attribute 'Gone'",
        ),
        (
            "raises",
            "shape 'raises' (vse_test_raises:Any) cannot be imported: RuntimeError: needs",
        ),
        (
            "vse_test_shapes:number",
            "shape 'vse_test_shapes:number' cannot be imported: TypeError: number is int, not a "
            "class",
        ),
        (
            "vse_test_absent:Class",
            "shape 'vse_test_absent:Class' cannot be imported: No module named 'vse_test_absent'; "
            "install it, or add its folder to PYTHONPATH",
        ),
        (":", "shape ':' cannot be imported: ValueError: Empty module name"),
    ],
)
def test_a_part_that_cannot_be_had_is_one_line(
    registry: Registry[object], outside: Path, name: str, message: str
) -> None:
    with pytest.raises(PartError) as caught:
        registry.find(name)
    assert isinstance(caught.value, UserError)
    assert str(caught.value) == message
