"""The run configuration: what it reads, and what it says about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vse_scale.config import Config
from vse_scale.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("data: {path: shards}\nrun: {dir: out}\n")
    return path


def test_defaults_are_the_published_recipe(recipe: Path) -> None:
    config = Config.load(recipe)
    assert config.data.global_batch == 128
    assert config.optim.lr == 5e-4
    assert (config.optim.text_scale, config.optim.backbone_scale) == (0.1, 0.01)
    assert (config.train.epochs, config.optim.drop_epochs) == (25, (15,))
    assert (config.objective.margin, config.objective.reduction) == (0.2, "sum")


def test_overrides_are_read_as_yaml(recipe: Path) -> None:
    config = Config.load(
        recipe,
        ["optim.lr=1e-3", "train.max_steps=null", "optim.drop_epochs=[2, 3]", "data.path='a=b'"],
    )
    assert config.optim.lr == 1e-3
    assert config.train.max_steps is None
    assert config.optim.drop_epochs == (2, 3)
    assert config.data.path == "a=b"


def test_resolved_config_reads_back_equal(recipe: Path, tmp_path: Path) -> None:
    config = Config.load(recipe, ["model.text.architecture.hidden_size=32"])
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert Config.load(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lrr=1", "unknown key optim.lrr; did you mean optim.lr?"),
        ("dta.path=x", "unknown key dta; did you mean data?"),
        ("data.globalbatch=8", "unknown key data.globalbatch; did you mean data.global_batch?"),
        ("optim.lr=fast", "optim.lr is 'fast': input should be a valid number"),
        ("optim.lr=0", "optim.lr is 0: input should be greater than 0"),
        ("engine.zero_stage=4", "engine.zero_stage is 4: input should be 0, 1, 2 or 3"),
        ("data.captions_per_image=5", "which needs data.mode=images"),
        ("nonsense", "override 'nonsense' is not of the form section.key=value"),
        ("data=3", "override 'data=3' is not of the form section.key=value"),
        ("data.path.deeper=3", "path is a value, not a section"),
        ("data.path=[", "'[' is not a YAML value"),
        ("data.path=null", "data.path is None: input should be a valid string"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(recipe: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(recipe, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "data: {path: [", "data: \x00"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as caught:
        Config.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_key_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        Config.load(tmp_path / "nowhere.yaml")
    (tmp_path / "half.yaml").write_text("data: {path: shards}\n")
    with pytest.raises(ConfigError, match=r"run is missing"):
        Config.load(tmp_path / "half.yaml")


@pytest.mark.parametrize(
    ("batch", "ranks", "said"),
    [
        (100, 8, "100, not divisible by 8 ranks; set 96 or 104"),
        (3, 8, "3, not divisible by 8 ranks; set 8"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_next_that_do(
    recipe: Path, batch: int, ranks: int, said: str
) -> None:
    config = Config.load(recipe, [f"data.global_batch={batch}"])
    with pytest.raises(ConfigError, match=said):
        config.check_layout(ranks)


def test_a_batch_of_several_captions_divides_by_whole_images(recipe: Path) -> None:
    config = Config.load(
        recipe, ["data.mode=images", "data.captions_per_image=5", "data.global_batch=128"]
    )
    with pytest.raises(ConfigError, match="by 2 ranks x 5 captions per image; set 120 or 130"):
        config.check_layout(2)


def test_every_shipped_recipe_resolves() -> None:
    recipes = sorted((Path(__file__).parents[1] / "launch" / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        Config.load(recipe)
