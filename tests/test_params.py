"""Parameters: defaults are the demo's, every file in params/ is valid, and every mistake names key and remedy."""

from pathlib import Path

import pytest
from places import REPOSITORY
from pydantic import ValidationError

from carblib.base.errors import CarbError
from carblib.params import Params, load_params, notebook_params, project_root, resolve
from carblib.variants import TRAINED

FOLDER = REPOSITORY / "params"


def message(call):
    with pytest.raises(CarbError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def write(folder, text):
    path = folder / "x.yaml"
    path.write_text(text)
    return path


def test_demo_yaml_is_the_defaults_and_explains_every_key():
    assert load_params(FOLDER / "demo.yaml") == Params()
    lines = (FOLDER / "demo.yaml").read_text().splitlines()
    for key, field in Params.model_fields.items():
        (line,) = [line for line in lines if line.startswith(f"{key}:")]
        assert line.endswith(f"# {field.description}"), key


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_is_valid_and_has_a_header(path):
    params = load_params(path)
    header = path.read_text().split("run:")[0]
    for word in ("reproduces", "hardware", "time", "result"):
        assert f"# {word} " in header
    for variant in TRAINED:
        params.variant(variant)
    assert params.run == ("own" if path.stem == "folder" else path.stem)


@pytest.mark.parametrize(
    ("name", "iterations", "warmup", "crop", "classes"),
    [
        ("cityscapes", 30000, 16000, (512, 1024), 19),
        ("camvid", 12000, 4000, (720, 960), 11),
        ("wilddash2", 30000, 16000, (512, 1024), 25),
    ],
)
def test_official_recipes(name, iterations, warmup, crop, classes):
    p = load_params(FOLDER / f"{name}.yaml")
    assert (p.iterations, p.warmup, p.crop, len(p.class_set)) == (iterations, warmup, crop, classes)
    assert (p.lr, p.momentum, p.weight_decay, p.lr_min, p.poly_power, p.flip) == (0.005, 0.9, 5e-4, 1e-4, 0.9, 0.5)
    assert (p.batch_size, p.devices, p.sync_bn, p.photometric) == (4, 2, True, True)
    assert (p.clip, p.path, p.patch) == ("ViT-B/16", "dual", (512, 256))
    assert p.aspp_dilations == (6, 12, 18, 24)
    assert p.freeze_backbone is False and p.cache_features is False
    assert (p.patch_rate, p.patch_offset) == ((2.0, 0.5) if name == "camvid" else (1.0, 1.0))
    # The official base size is a box that an image is scaled into with its aspect ratio: 1920 x 1080 for WildDash2.
    sizes = {"camvid": (720, 960), "cityscapes": (1024, 2048), "wilddash2": (1024, round(1920 * 1024 / 1080))}
    assert (p.image_size, p.resize_ratio) == (sizes[name], (1.0, 4.0) if name == "camvid" else (0.5, 2.0))


def test_text_from_papermill_is_converted(tmp_path):
    path = write(tmp_path, "lr: 1e-3\n")  # YAML 1.1 reads this as text
    given = {"flip": "1e-1", "mask_flip": "true", "crop": "[256, 512]", "mask_window": "null", "iterations": "900"}
    p = load_params(path, given)
    assert (p.lr, p.flip, p.mask_flip, p.crop, p.mask_window, p.iterations) == (1e-3, 0.1, True, (256, 512), None, 900)
    assert load_params(path, {"classes": "[{name: a}, {name: b}]"}).class_set.names == ("a", "b")
    assert load_params(path, {"variants": "[paper]"}).variants == ("paper",)


def test_precedence(tmp_path):
    path = write(tmp_path, "run: a\nlr: 0.02\n")
    assert load_params(path, {"lr": 0.03}).lr == 0.03
    assert load_params(path).lr == 0.02
    assert load_params(path).momentum == Params().momentum


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr: 1", ["x.yaml: 'lrr' is no parameter; did you mean 'lr'?"]),
        ("zzzzz: 1", ["'zzzzz' is no parameter", "demo.yaml"]),
        ("lr: fast", ["'lr' cannot be 'fast'", "number"]),
        ("lr: [1", ["YAML"]),
        ("lr: .nan", ["'lr'", "finite"]),
        ("crop: [0, 3]", ["'crop[0]' cannot be 0"]),
        ("crop: 3", ["'crop'"]),
        (
            "device: gpu0\niteration: 3",
            ["'device'", "'cpu'", "'iteration' is no", "did you mean 'iterations'?"],
        ),
        ("masker: value_pat", ["did you mean 'value_path'?"]),
        ("variants: [paperr]", ["'variants[0]'", "did you mean 'paper'?"]),
        ("run: ../x", ["'run'", "folder name"]),
        ("classes: camvit", ["'classes'", "did you mean 'camvid'?"]),
        ("classes: [{name: a}, {name: b, colr: 1}]", ["colr"]),
        ("lr: 1\nlr: 2", ["'lr' is given twice"]),
        ("", ["key: value"]),
        ("- lr", ["key: value"]),
        ("1: 2", ["key: value"]),
        ("warmup: 1000\niterations: 10", ["warmup 1000 exceeds iterations 10"]),
        ("patch: [600, 10]", ["patch [600, 10] exceeds crop"]),
        ("freeze_backbone: false", ["cache_features needs freeze_backbone"]),
        ("photometric: true", ["cache_features needs photometric: false"]),
        ("resize_ratio: [0.5, 2.0]", ["cache_features needs resize_ratio"]),
        ("resize_ratio: [2.0, 1.0]\ncache_features: false", ["swap"]),
        ("crop: [250, 500]", ["cache_features needs crop"]),
        ("crop: [512, 512]", ["cache_features needs crop"]),
        ("mask_stride: [8, 8]", ["mask_stride needs mask_window"]),
        ("infer_window: [64, 64]\ninfer_stride: [65, 64]", ["infer_stride exceeds infer_window"]),
        ("path: dual\ncrf: true", ["crf", "path: single"]),
        ("supervision: masks", ["local_view: false and balancing: false"]),
        ("lr: 0.00001", ["lr_min"]),
        ("image_size: 256", ["'image_size' cannot be 256: write [H, W], as in [256, 512]"]),
        ("image_size: [256]", ["'image_size' cannot be [256]: write [H, W]"]),
        ("mask_window: [1, 2, 3]", ["write [H, W]"]),
        ("resize_ratio: 2", ["write [low, high], as in [0.5, 2.0]"]),
        ("variants: paper", ["'variants' cannot be 'paper': write a list: [paper]"]),
        ("variants: null", ["write a list: [plain, paper, ours]"]),
        ("ablation_seeds: 3", ["write a list: [3]"]),
        ("seed: 99999999999999999999999", ["'seed'", "less than or equal to 4294967295"]),
        ("ablation_seeds: [0, 4294967296]", ["'ablation_seeds[1]'", "4294967295"]),
        ("run: 2024-13-45", ["month must be in"]),
        (f"crop: {'x' * 5000}", ["'crop' cannot be 'xxx", "write [H, W]"]),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    path = write(tmp_path, text)
    said = message(lambda: load_params(path))
    assert said.startswith(str(path))
    for word in words:
        assert word in said
    assert len(said) < 700


def test_a_folder_a_link_to_itself_and_a_home_of_nobody_are_no_parameters(tmp_path):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "is a folder" in message(lambda: load_params(tmp_path))
    assert "link that leads nowhere" in message(lambda: load_params(tmp_path / "loop.yaml"))
    assert "no such file" in message(lambda: load_params("~nobody_of_that_name/x.yaml"))
    assert "cannot be '[[[" in message(lambda: load_params("params/demo.yaml", {"crop": "[" * 3000}))


def test_the_largest_seed_is_one_that_generators_take():
    import numpy
    import torch

    seed = Params().updated(seed=2**32 - 1, ablation_seeds=[2**32 - 1]).seed
    numpy.random.RandomState(seed)
    torch.Generator().manual_seed(seed)


def test_a_missing_file_names_the_nearest():
    assert "did you mean 'params/demo.yaml'?" in message(lambda: load_params("params/dem.yaml"))


def test_a_mistake_on_the_command_line_is_blamed_on_it():
    assert message(lambda: load_params("params/demo.yaml", {"lrr": 1})).startswith("-p: 'lrr' is no parameter")


def test_crops_of_cached_features_may_be_smaller_on_the_grid():
    assert Params().updated(crop=[128, 256], patch=[64, 32]).crop == (128, 256)
    assert Params().updated(image_size=[90, 70], crop=[90, 70], patch=[9, 9]).crop == (90, 70)


@pytest.mark.parametrize("watched", [True, False])
def test_only_a_person_is_told_to_restart_the_kernel(watched, monkeypatch):
    monkeypatch.setattr("carblib.params.is_live", lambda: watched)
    assert ("restart the kernel" in message(lambda: notebook_params({"lrr": 3}))) == watched


def test_notebook_takes_what_papermill_injects():
    import numpy

    cell = {"params_file": "params/demo.yaml", "lr": "1e-2", "crop": [256, 256], "clip_folder": ""}
    ipython = {"In": ["a"], "Out": {}, "_i1": "x", "_": 3, "__name__": "x", "exit": 1, "quit": 2, "get_ipython": 3}
    objects = {"np": numpy, "message": message, "array": numpy.ones(3), "Params": Params}
    p = notebook_params({**cell, **ipython, **objects})
    assert (p.lr, p.crop) == (0.01, (256, 256))
    assert "'lrr' is no parameter; did you mean 'lr'?" in message(lambda: notebook_params({**cell, "lrr": 3}))
    assert notebook_params({}) == Params()


def test_variants_and_copies():
    p = Params()
    on = {name: (p.variant(name).local_view, p.variant(name).balancing) for name in TRAINED}
    assert on == {
        "plain": (False, False),
        "glv": (True, False),
        "carb": (False, True),
        "paper": (True, True),
        "ours": (True, True),
        "ceiling": (False, False),
    }
    assert p.variant("ceiling").supervision == "masks" and p.variant("paper") == p
    assert p.variant("ours").region_weight == "class" and p.variant("paper").region_weight == "paper"
    assert "did you mean 'plain'?" in message(lambda: p.variant("plane"))
    assert "did you mean 'lr'?" in message(lambda: p.updated(lrr=1))
    with pytest.raises(ValidationError):
        p.lr = 1.0


def test_the_trainings_of_a_run():
    assert Params(variants=("plain", "ours"), ceiling=True).trainings == ("plain", "ours", "ceiling")
    assert Params(variants=("paper",), ceiling=False).trainings == ("paper",)


def test_yaml_round_trip(tmp_path):
    p = Params().updated(classes=[{"name": "ä", "words": ["a"]}, {"name": "b"}], mask_window=[64, 64], lr=1e-3)
    assert load_params(write(tmp_path, p.to_yaml())) == p


def test_a_run_resumes_only_with_what_weights_depend_on():
    p = Params()
    assert p.training_dump() == p.updated(bootstrap=7, workers=2, test_split="x").training_dump()
    for key, value in {"lr": 0.1, "seed": 1, "patch": [32, 32], "root": "b", "scenes_train": 3}.items():
        assert p.training_dump() != p.updated(**{key: value}).training_dump()


def test_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("CARB_HOME", raising=False)
    assert (project_root() / "params" / "demo.yaml").is_file()
    (tmp_path / "carblib").mkdir()
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert project_root() == tmp_path
    assert Params().run_dir == tmp_path / "runs" / "demo"
    assert Params().figures_dir == tmp_path / "figures" / "demo"
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "x"))
    assert Params().data_root == tmp_path / "x" / "data" / "scenes"
    assert resolve("/a/b") == Path("/a/b")
    monkeypatch.setenv("SOME_DATA", "/far/away")
    assert Params(root="$SOME_DATA/camvid").data_root == Path("/far/away/camvid")
    monkeypatch.delenv("SOME_DATA")
    assert "SOME_DATA is not set" in message(lambda: Params(root="${SOME_DATA}/camvid").data_root)
