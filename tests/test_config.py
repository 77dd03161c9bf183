"""The run configuration: what it reads, and what it says about mistakes."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vse_scale.commands.recipes import recipes
from vse_scale.config import Config
from vse_scale.config.recipe import apply_override, recipe_names
from vse_scale.errors import ConfigError

ROOT = Path(__file__).parents[1]


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


def test_several_datasets_are_a_list(recipe: Path, tmp_path: Path) -> None:
    config = Config.load(recipe, ["data.path=[a, b]", "data.weights=[2, 1]"])
    assert config.data.folders == ("a", "b")
    assert config.data.weights == (2.0, 1.0)
    assert Config.load(recipe).data.folders == ("shards",)
    assert Config.load(recipe, ["data.path=s3://b/f"]).data.folders == ("s3://b/f",)
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert Config.load(tmp_path / "resolved.yaml") == config


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
        # The names of Trainer, Lightning, open_clip and DeepSpeed, in whatever section.
        ("data.batch_size=8", "unknown key data.batch_size; did you mean data.global_batch?"),
        ("train.batch_size=8", "unknown key train.batch_size; did you mean data.global_batch?"),
        ("data.num_workers=8", "unknown key data.num_workers; did you mean data.threads?"),
        ("optim.learning_rate=1", "unknown key optim.learning_rate; did you mean optim.lr?"),
        ("eval.batch_size=8", "unknown key eval.batch_size; did you mean eval.batch?"),
        ("train.lr=1", "unknown key train.lr; did you mean optim.lr?"),
        (
            "train.gradient_accumulation_steps=2",
            "unknown key train.gradient_accumulation_steps; did you mean engine.micro_batches?",
        ),
        ("optim.epochs=3", "unknown key optim.epochs; did you mean train.epochs?"),
        ("train.output_dir=x", "unknown key train.output_dir; did you mean run.dir?"),
        ("epochs=3", "is not of the form section.key=value; did you mean train.epochs=3?"),
        ("optim.lr=fast", "optim.lr is 'fast': input should be a valid number"),
        ("optim.lr=0", "optim.lr is 0: input should be greater than 0"),
        ("data.global_batch=99999999999", "should be less than or equal to 2147483647"),
        ("engine.zero_stage=4", "engine.zero_stage is 4: input should be 0, 1, 2 or 3"),
        ("data.captions_per_image=5", "which needs data.mode=images"),
        ("nonsense", "override 'nonsense' is not of the form section.key=value"),
        ("data=3", "override 'data=3' is not of the form section.key=value"),
        ("data.path.deeper=3", "path is a value, not a section"),
        ("data.path=[", "'[' is not a YAML value"),
        ("data.path=[a, 3]", "data.path is ['a', 3]: give a folder, or a list of folders"),
        ("data.path=[]", "data.path is []: give a folder, or a list of folders"),
        ("data.weights=[1, 2]", "data.weights has 2 values, and data.path 1 folder; give one"),
        ("data.path=null", "data.path is None: give a folder, or a list of folders"),
        ("data.path={a: b}", "data.path is {'a': 'b'}: give a folder, or a list of folders"),
        ("run.dir=2026-11-30", "run.dir is 2026-11-30: input should be a valid string; put it in"),
        ("run.dir=lit: five", "run.dir is {'lit': 'five'}: input should be a valid string; put it"),
        ("optim.lr=1 # less", "optim.lr is '1 # less': input should be a valid number"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(recipe: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(recipe, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "said", "remedy"),
    [
        (
            {"kind": "hinge+infonce", "margin": 0.3},
            "objective.margin is 0.3: is a setting of kind=hinge, and kind is hinge+infonce; take "
            "it out (null does, over a base), or set objective.hinge.margin",
            {"kind": "hinge+infonce", "hinge": {"margin": 0.3}},
        ),
        (
            {"kind": "hinge+infonce", "ignore_above": 0.3},
            "or set objective.hinge.ignore_above or objective.infonce.ignore_above",
            {"kind": "hinge+infonce", "infonce": {"ignore_above": 0.3}},
        ),
        ({"kind": "infonce", "margin": 0.3}, "or set objective.kind=hinge", {"margin": 0.3}),
        (
            {"kind": "hinge+infonce", "hinge_weight": 0, "infonce_weight": 0},
            "objective.hinge_weight and objective.infonce_weight are both 0, so that nothing is "
            "learnt; set one above 0",
            {"kind": "hinge+infonce", "hinge_weight": 0, "infonce_weight": 0.1},
        ),
    ],
)
def test_a_setting_of_a_loss_is_answered_with_its_place(
    objective: dict[str, object], said: str, remedy: dict[str, object]
) -> None:
    raw = {"data": {"path": "d"}, "run": {"dir": "r"}}
    with pytest.raises(ConfigError) as caught:
        Config.parse(raw | {"objective": objective})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    Config.parse(raw | {"objective": remedy})


def test_a_run_stands_for_the_model_that_it_made(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    for given in ("run", "run/model"):
        config = Config.load(recipe, [f"model.init_from={tmp_path / given}"])
        assert config.model.init_from == str(tmp_path / "run" / "model")


def test_compiling_under_stage_3_is_refused(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot follow .* set engine.zero_stage=2"):
        Config.load(recipe, ["engine.compile=true", "engine.zero_stage=3"])


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


class TestBases:
    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[[str, str], Path]:
        def write(name: str, text: str) -> Path:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return path

        return write

    def test_a_recipe_states_what_differs(self, write: Callable[[str, str], Path]) -> None:
        write(
            "below/base.yaml",
            "data: {path: a, global_batch: 64, crop_scale: [0.5, 1.0]}\nrun: {dir: out, seed: 3}\n"
            "model: {text: {architecture: {hidden_size: 32, num_hidden_layers: 2}}}\n",
        )
        write("text.yaml", "model: {text: {architecture: {num_hidden_layers: 1}}, embed_dim: 8}\n")
        path = write(
            "top.yaml",
            "base: [below/base.yaml, text.yaml]\ndata: {path: b, crop_scale: [0.9, 1.0]}\n",
        )
        config = Config.load(path, ["run.seed=4"])
        assert (config.data.path, config.data.global_batch) == ("b", 64)
        assert config.data.crop_scale == (0.9, 1.0)
        assert config.model.text.architecture == {"hidden_size": 32, "num_hidden_layers": 1}
        assert (config.model.embed_dim, config.run.dir, config.run.seed) == (8, "out", 4)
        assert "base" not in yaml.safe_load(config.to_yaml())

    def test_a_base_is_found_from_the_file_that_names_it(
        self, write: Callable[[str, str], Path]
    ) -> None:
        write("a/root.yaml", "data: {path: x}\nrun: {dir: out}\n")
        write("a/b/middle.yaml", "base: ../root.yaml\noptim: {lr: 0.1}\n")
        path = write("c/top.yaml", "base: ../a/b/middle.yaml\n")
        assert Config.load(path).optim.lr == 0.1

    def test_two_files_may_share_a_base(self, write: Callable[[str, str], Path]) -> None:
        write("root.yaml", "data: {path: x}\nrun: {dir: out}\n")
        write("left.yaml", "base: root.yaml\noptim: {lr: 0.1}\n")
        write("right.yaml", "base: root.yaml\noptim: {clip: 1}\n")
        config = Config.load(write("top.yaml", "base: [left.yaml, right.yaml]\n"))
        assert (config.optim.lr, config.optim.clip) == (0.1, 1.0)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("base: gone.yaml", r"top\.yaml: base .*gone\.yaml: cannot be read \(No such file"),
            ("base: {a: 1}", r"top\.yaml: base is \{'a': 1\}; give a file, or a list of files"),
            ("base: top.yaml", r"is built upon itself \(.*top\.yaml -> .*top\.yaml\)"),
            ("base: loop.yaml", r"upon itself \(.*top\.yaml -> .*loop\.yaml -> .*top\.yaml\)"),
            ("base: list.yaml", r"list\.yaml: holds list, not sections of keys"),
        ],
    )
    def test_a_wrong_base_is_one_line(
        self, write: Callable[[str, str], Path], text: str, said: str
    ) -> None:
        write("loop.yaml", "base: top.yaml\n")
        write("list.yaml", "[1]\n")
        with pytest.raises(ConfigError, match=said) as caught:
            Config.load(write("top.yaml", text))
        assert "\n" not in str(caught.value)


def test_every_key_of_another_trainer_leads_to_one_of_ours() -> None:
    from vse_scale.config.schema import known_keys
    from vse_scale.config.synonyms import _OURS

    assert set(_OURS) <= set(known_keys())
    words = [word for words in _OURS.values() for word in words.split()]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("runs/try #2", "runs/try #2"),
        ("runs/lit: five, six", "runs/lit: five, six"),
        ("/data/#5: all", "/data/#5: all"),
        # What YAML takes for something else, in the quotes that the message names.
        ('"2026-11-30"', "2026-11-30"),
        ('"lit: five"', "lit: five"),
        ('"5" # as before', "5"),
    ],
)
def test_a_text_on_the_command_line_stays_whole(recipe: Path, given: str, read: str) -> None:
    assert Config.load(recipe, [f"run.dir={given}"]).run.dir == read


def test_collections_on_the_command_line_are_yaml(recipe: Path) -> None:
    for given in ("{rank: 4} # few", "rank: 4"):
        lora = Config.load(recipe, [f"model.text.lora={given}"]).model.text.lora
        assert lora is not None
        assert lora.rank == 4


def test_a_run_folder_is_one_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/disk")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("NOWHERE", raising=False)

    def folder(given: str) -> str:
        raw = {"data": {"path": "none"}, "run": {}}
        apply_override(raw, f"run.dir={given}")
        return Config.parse(raw).run.dir

    assert folder("runs/a") == "runs/a"
    assert folder("$SCRATCH/a") == "/disk/a"
    assert folder("${SCRATCH}/a b") == "/disk/a b"
    assert folder("~/a") == "/home/ada/a"
    for given, words in (
        ("s3://bucket/run", "is a URL"),
        ("file:///tmp/run", "is a URL"),
        ("$NOWHERE/a", "that is not set here"),
        ("a\nb", "has a line break in it"),
        ("''", "is empty"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            folder(given)
        assert "\n" not in str(caught.value)


def test_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After thammegowda/mtdata#82: files of the repository that the wheel lacks."""
    monkeypatch.chdir(tmp_path)
    named = Config.load("small", ["data.path=x"])
    assert named == Config.load(ROOT / "launch" / "recipes" / "small.yaml", ["data.path=x"])
    assert "coco_region_bert" in recipe_names()
    with pytest.raises(ConfigError, match=r"smal: there is no such file, nor a recipe .*small"):
        Config.load("smal")
    with pytest.raises(ConfigError, match="small, its name alone, is the package's recipe"):
        Config.load("launch/recipes/small.yaml")
    (tmp_path / "small").mkdir()  # a folder is no configuration
    assert Config.load("small", ["data.path=x"]) == named
    (tmp_path / "small").rmdir()
    (tmp_path / "small").write_text("run: {dir: mine}\ndata: {path: x}\n")
    assert Config.load("small").run.dir == "mine"


@pytest.mark.parametrize("name", ["demo", "coco_vsepp_bigru", "siglip"])
def test_a_copy_of_a_recipe_finds_its_bases_in_the_package(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes(name)
    copy = tmp_path / "mine.yaml"
    copy.write_text(capsys.readouterr().out)
    assert Config.load(copy) == Config.load(name)


def test_a_base_beside_the_file_comes_before_the_package(tmp_path: Path) -> None:
    (tmp_path / "clip.yaml").write_text("run: {dir: beside}\ndata: {path: x}\n")
    (tmp_path / "mine.yaml").write_text("base: clip.yaml\n")
    assert Config.load(tmp_path / "mine.yaml").run.dir == "beside"


def test_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    recipes(None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)
    with pytest.raises(ConfigError, match="nor a recipe of that name; the recipes are clip"):
        recipes("../secret")
    with pytest.raises(ConfigError, match=r"nor a recipe of that name; did you mean small\?$"):
        recipes("smal")


def test_the_wheel_has_every_recipe_and_launch_file() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "vse_scale"
    shipped = {
        path.resolve()
        for pattern in patterns["package-data"]["vse_scale"]
        for path in package.glob(pattern)
    }
    sources = [*(ROOT / "launch" / "recipes").rglob("*.yaml")]
    for folder in ("slurm", "monitoring"):
        sources += [path for path in (ROOT / "launch" / folder).rglob("*") if path.is_file()]
    assert {path for path in shipped if path.is_file()} == {path.resolve() for path in sources}
