"""Parameters: defaults are the paper's, every file in params/ is valid, and every mistake names key and remedy."""

import json
from pathlib import Path

import pytest
from places import REPOSITORY
from pydantic import ValidationError
from small import small_params

from carblib.base.errors import CarbError
from carblib.params import AFFECTED, Params, load_params, notebook_params, project_root, resolve
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


def test_the_defaults_are_the_papers_on_one_device():
    recipe = load_params(FOLDER / "cityscapes.yaml")
    machine = {"devices", "batch_size", "sync_bn", "workers", "device", "precision"}
    changed = {key for key, value in Params() if value != getattr(recipe, key)}
    assert changed == machine | {"test_split"}
    assert Params().devices * Params().batch_size == recipe.devices * recipe.batch_size == 8


def test_the_demo_is_small():
    demo = load_params(FOLDER / "demo.yaml")
    assert (demo.dataset, demo.clip, demo.path, demo.backbone) == ("scenes", "small", "single", "small")
    assert (demo.image_size, demo.crop, demo.patch, demo.input_scale) == ((256, 512), (128, 256), (64, 64), 2)
    assert (demo.iterations, demo.warmup, demo.batch_size, demo.lr) == (260, 130, 8, 0.3)
    assert (demo.scenes_train, demo.scenes_test, demo.aspp_dilations) == (200, 120, (1, 3, 6, 12))
    assert demo.freeze_backbone and demo.cache_features and not demo.photometric and not demo.sync_bn
    assert demo.variants == ("plain", "paper", "ours") and demo.resize_ratio == (1.0, 1.0)


def test_recipes_on_the_demo():
    demo, full = load_params(FOLDER / "demo.yaml"), load_params(FOLDER / "scenes_full.yaml")
    assert (full.path, full.iterations, full.scenes_train, full.scenes_seed) == ("dual", 8000, 2000, 1)
    small = load_params(FOLDER / "camvid_small.yaml")
    assert (small.dataset, small.backbone, small.image_size) == ("camvid", "mobilenet_v2", (360, 480))
    for key in ("clip", "classes", "aspp_dilations", "weight_decay", "crf"):
        assert getattr(full, key) == getattr(small, key) == getattr(demo, key)


def test_a_base_lies_under_its_file(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "a.yaml").write_text("run: a\nlr: 0.02\nmomentum: 0.5\n")
    (tmp_path / "b.yaml").write_text("base: deeper/a.yaml\nrun: b\nlr: 0.03\n")
    p = load_params(write(tmp_path, "base: b.yaml\nrun: c\n"), {"flip": 0.1})
    assert (p.run, p.lr, p.momentum, p.flip, p.warmup) == ("c", 0.03, 0.5, 0.1, Params().warmup)
    assert load_params(write(tmp_path, p.to_yaml())) == p  # all keys, and no base


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("x.yaml", "x.yaml: its base x.yaml leads back to x.yaml"),
        ("circle.yaml", "circle.yaml: its base x.yaml leads back to x.yaml"),
        ("nothere.yaml", "x.yaml: its base 'nothere.yaml' is no file of "),
        ("[a.yaml]", "x.yaml: its base ['a.yaml'] is no file of "),
        ("wrong.yaml", "wrong.yaml: 'lrr' is no parameter; did you mean 'lr'?"),
    ],
)
def test_mistakes_of_a_base_are_named(tmp_path, base, words):
    (tmp_path / "circle.yaml").write_text("base: x.yaml\n")
    (tmp_path / "wrong.yaml").write_text("lrr: 3\n")
    path = write(tmp_path, f"base: {base}\nlr: 0.01\n")
    assert words in message(lambda: load_params(path))


def test_a_base_is_a_line_of_a_file_and_no_parameter():
    assert "'base' is no parameter" in message(lambda: load_params(FOLDER / "demo.yaml", {"base": "demo.yaml"}))
    assert "-p params_file" in message(lambda: notebook_params({"base": "demo.yaml"}))


# What stood in lists of its own before each key said what it affects.
BEFORE = {
    "labels": "classes",
    "masks": "classes image_size clip masker gate clip_pixels official_clip synonyms mask_window "
    "mask_stride mask_scales mask_flip precision",
    "inference": "image_size infer_window infer_stride infer_scales infer_flip precision",
    "nothing": "clip_folder log_every checkpoint_every tensorboard device workers cache_images interactive",
}
NOT_TRAINING = (
    "run val_split test_split scenes_val scenes_test variants ceiling tensorboard log_every val_every val_images "
    "checkpoint_every monitor_images infer_window infer_stride infer_scales infer_flip bootstrap device workers "
    "cache_images interactive ablation_variants ablation_paths ablation_maskers ablation_seeds "
    "dataset root images scenes_train scenes_seed skip_bad labels pseudo_masks clip_folder"  # data are known by content
)


def test_every_key_says_what_it_affects():
    keys = [*Params.model_fields]
    for name, field in Params.model_fields.items():
        assert field.description and field.json_schema_extra["affects"], name
        assert set(field.json_schema_extra["affects"]) <= AFFECTED.keys(), name
    for what, names in BEFORE.items():
        assert Params.keys_that_affect(what) == names.split(), what
    assert Params.keys_that_affect("training") == [key for key in keys if key not in NOT_TRAINING.split()]
    compared = [key for key in keys if key not in BEFORE["nothing"].split()]
    assert Params.keys_that_affect("ablations") == compared
    assert Params.keys_that_affect("results") == [key for key in compared if not key.startswith("ablation_")]


def test_what_affects_an_artefact_can_be_written_beside_it():
    settings = Params(mask_window=(64, 64)).that_affect("masks")
    assert settings["mask_window"] == [64, 64] and "lr" not in settings
    assert json.loads(json.dumps(settings)) == settings and list(settings) == BEFORE["masks"].split()


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
    assert p.precision == "bf16-mixed"
    assert (p.clip, p.path, p.patch) == ("ViT-B/16", "dual", (512, 256))
    assert p.aspp_dilations == (6, 12, 18, 24)
    assert p.freeze_backbone is False and p.cache_features is False
    assert (p.patch_rate, p.patch_offset) == ((2.0, 0.5) if name == "camvid" else (1.0, 1.0))
    # The official base size is a box that an image is scaled into with its aspect ratio: 1920 x 1080 for WildDash2.
    sizes = {"camvid": (720, 960), "cityscapes": (1024, 2048), "wilddash2": (1024, round(1920 * 1024 / 1080))}
    assert (p.image_size, p.resize_ratio) == (sizes[name], (1.0, 4.0) if name == "camvid" else (0.5, 2.0))


def test_text_from_papermill_is_converted(tmp_path):
    path = write(tmp_path, f"base: {FOLDER}/demo.yaml\nlr: 1e-3\n")  # YAML 1.1 reads 1e-3 as text
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


CACHED = "cache_features: true\nfreeze_backbone: true\nphotometric: false\nresize_ratio: [1.0, 1.0]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr: 1", ["x.yaml: 'lrr' is no parameter; did you mean 'lr'?"]),
        ("zzzzz: 1", ["'zzzzz' is no parameter", "carb params"]),
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
        ("cache_features: true", ["cache_features needs freeze_backbone"]),
        ("cache_features: true\nfreeze_backbone: true", ["cache_features needs photometric: false"]),
        ("cache_features: true\nfreeze_backbone: true", ["cache_features needs resize_ratio"]),
        ("resize_ratio: [2.0, 1.0]", ["swap"]),
        (f"{CACHED}crop: [250, 500]\npatch: [64, 64]", ["cache_features needs crop"]),
        (f"{CACHED}crop: [2048, 512]", ["cache_features needs crop"]),
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
        ("variants: null", ["write a list: [plain, paper]"]),
        ("ablation_seeds: 3", ["write a list: [3]"]),
        ("seed: 99999999999999999999999", ["'seed'", "less than or equal to 4294967295"]),
        ("ablation_seeds: [0, 4294967296]", ["'ablation_seeds[1]'", "4294967295"]),
        ("lr: 2024-13-45", ["month must be in"]),
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
    assert small_params(crop=[128, 256], patch=[64, 32]).crop == (128, 256)
    assert small_params(image_size=[90, 70], crop=[90, 70], patch=[9, 9]).crop == (90, 70)


def test_a_notebook_overrides_what_its_file_says():
    cell = {"params_file": "params/demo.yaml", "lr": "1e-2", "crop": [256, 256], "clip_folder": "", "seed": None}
    p = notebook_params(cell | {"mask_window": None})
    assert (p.lr, p.crop, p.seed, p.mask_window) == (0.01, (256, 256), small_params().seed, None)
    assert "'lrr' is no parameter; did you mean 'lr'?" in message(lambda: notebook_params({**cell, "lrr": 3}))
    assert notebook_params({"params_file": "params/demo.yaml"}) == small_params()


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
    def learnt_from(**changes):
        return Params(**changes).that_affect("training")

    assert learnt_from() == learnt_from(bootstrap=7, workers=2, test_split="x")
    assert learnt_from() == learnt_from(root="b", scenes_train=3, labels="a.csv", pseudo_masks="c", clip_folder="d")
    for key, value in {"lr": 0.1, "seed": 1, "patch": (32, 32), "path": "single", "train_split": "b"}.items():
        assert learnt_from() != learnt_from(**{key: value})


def test_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("CARB_HOME", raising=False)
    assert (project_root() / "params" / "demo.yaml").is_file()
    (tmp_path / "carblib").mkdir()
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert project_root() == tmp_path
    assert Params().run_dir == tmp_path / "runs" / "cityscapes"
    assert Params().figures_dir == tmp_path / "figures" / "cityscapes"
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "x"))
    assert Params().data_root == tmp_path / "x" / "data" / "cityscapes"
    assert resolve("/a/b") == Path("/a/b")
    monkeypatch.setenv("SOME_DATA", "/far/away")
    assert Params(root="$SOME_DATA/camvid").data_root == Path("/far/away/camvid")
    monkeypatch.delenv("SOME_DATA")
    assert "SOME_DATA is not set" in message(lambda: Params(root="${SOME_DATA}/camvid").data_root)


TEXTS = ["2024_01_15", "0012", "1e3", "on", "yes", "2024-01-15", "0x1F", "12:30:45", "007", "1_000", "5", "4.0"]


@pytest.mark.parametrize("text", [text for text in TEXTS if ":" not in text])
def test_texts_are_what_was_written(tmp_path, text):
    path = write(tmp_path, f"base: {FOLDER}/demo.yaml\nrun: {text}\ntrain_split: {text}\n")
    p = load_params(path)
    assert (p.run, p.train_split) == (text, text) == (load_params(path, {"run": text}).run, text)
    assert load_params(write(tmp_path, p.to_yaml())) == p
    (tmp_path / text).write_text(f"base: {FOLDER}/demo.yaml\n")
    assert load_params(write(tmp_path, f"base: {text}\n")).dataset == "scenes"


def test_class_names_are_what_was_written(tmp_path):
    names = [*TEXTS, "null_", "a"]
    texts = f"classes: [{', '.join(f'{{name: {name}, words: [{name}, no]}}' for name in names)}]\n"
    classes = load_params(write(tmp_path, f"base: {FOLDER}/demo.yaml\n{texts}")).class_set
    assert classes.names == tuple(names) and classes.words[1] == ("0012", "no")
    bare = load_params(write(tmp_path, f"base: {FOLDER}/demo.yaml\nclasses: [on, 0012, {{name: x, small: yes}}]\n"))
    assert bare.class_set.names == ("on", "0012", "x") and bare.class_set.small == (False, False, True)
    assert load_params(FOLDER / "demo.yaml", {"classes": "[on, 0012, no]"}).class_set.names == ("on", "0012", "no")


def test_numbers_stay_numbers_beside_texts_of_the_same_anchor(tmp_path):
    path = write(tmp_path, f"base: {FOLDER}/demo.yaml\nseed: &n 1_2\nrun: *n\nlabels: ''\nmask_window: null\n")
    p = load_params(path)
    assert (p.seed, p.run, p.mask_window) == (12, "1_2", None)


def test_a_text_that_papermill_made_a_number_is_refused():
    for value in (20240115, 12.0, True):
        said = message(lambda value=value: notebook_params({"run": value}))
        assert f"run: a text that came as {value!r}" in said and "-r run <text>" in said
    assert notebook_params({"params_file": "params/demo.yaml", "run": "2024_01_15"}).run == "2024_01_15"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("val_images: 010", "010 is no decimal number; write it without leading zeros"),
        ("val_images: 1:30", "1:30 is no decimal number"),
        ("lr: 1:30.5", "1:30.5 is no decimal number"),
        ("val_images: yes", "'val_images' cannot be True: true and false, yes and no"),
        ("flip: on", "'flip' cannot be True"),
        ("crop: [yes, no]", "'crop' cannot be [True, False]"),
        ("train_split: ../train", "'train_split' cannot be '../train': must be the plain name of a folder"),
        ("val_split: ''", "'val_split' cannot be ''"),
        ("test_split: .hidden", "'test_split' cannot be '.hidden'"),
    ],
)
def test_what_yaml_and_pydantic_would_read_otherwise_is_refused(tmp_path, line, said):
    assert said in message(lambda: load_params(write(tmp_path, f"base: {FOLDER}/demo.yaml\n{line}\n")))


def test_numbers_that_all_read_alike_and_merged_classes_stay(tmp_path):
    text = "val_images: 1_0\nworkers: 0x2\nlr: 00.5\nflip: 1e-1\nlr_min: 0\nmask_flip: yes\nclasses:\n"
    text += "  - &small {name: sky, small: true}\n  - {<<: *small, name: road}\n"
    p = load_params(write(tmp_path, f"base: {FOLDER}/demo.yaml\n{text}"))
    assert (p.val_images, p.workers, p.lr, p.flip, p.lr_min, p.mask_flip) == (10, 2, 0.5, 0.1, 0, True)
    assert p.class_set.names == ("sky", "road") and p.class_set.small == (True, True)


def test_a_home_of_no_user_is_no_folder(monkeypatch):
    monkeypatch.setenv("CARB_HOME", "~no_such_user/x")
    assert message(project_root) == "CARB_HOME: ~no_such_user/x: there is no such user; write the folder"
