"""Figures: drawn from saved results, true to the numbers, readable, whole, and saying where they come from."""

from __future__ import annotations

import ast
import dataclasses
import io
import os
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from commands import carb
from fake_run import NAMES, check_readable, evaluation, make_run
from PIL import Image
from places import REPOSITORY
from small import small_params

import carblib
from carblib.base.errors import CarbError
from carblib.base.files import read_json, write_json, write_text
from carblib.base.stamps import Stamp, write_stamp
from carblib.classes import CAMVID
from carblib.data.label_maps import colour_mask
from carblib.data.mask_folders import read_mask
from carblib.figures import captions, closer, grids, style
from carblib.figures import draw as figures
from carblib.figures.table import FIGURES, TABLE, RunFigure
from carblib.results import words
from carblib.results.saved import Missing, RunResults, load_results
from carblib.variants import VARIANTS, variant_label

RNG = np.random.default_rng(1)
CONTRAST = {"name": "objects", "image_share": [0.1], "classes_per_image": [3, 1], "object_areas": [0.2, 0.3]}
# Images behind a figure: the watched ones of val (3 of 5 here), the training images, or all of test.
WATCHED = {
    "training_curves": 3,
    "compare_trainings": 3,
    "reliability_curves": 3,
    "region_weights": 5,
    "iou_per_class": 5,
    "object_size_curves": 5,
    "ablations": 120,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("figures"), val_images=3)


@pytest.fixture(scope="module")
def results(run: Path) -> RunResults:
    return load_results(run)


# --- all figures of a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_figure_is_whole_readable_and_says_what_it_is(results: RunResults, row: RunFigure) -> None:
    figure, record = row.make(results)
    assert figure.get_figwidth() in (words.COLUMN, words.PAGE)
    check_readable(figure)
    assert "rendered scenes" in record.source and re.search("seeds? 0", record.source) and record.alt
    assert record.images > 0 and "images: 0" not in record.source and "(1 images)" not in record.source
    assert "<variant>" not in record.caption and "  " not in record.caption + record.source
    assert record.caption.endswith(".") and "seed 0" not in record.caption and "carblib" not in record.caption
    assert "small one trained on rendered scenes" in record.source and "OpenAI" not in record.caption + record.alt
    assert record.seed == ((0, 1, 2) if row.name == "ablations" else 0) and record.version and record.run == "tiny"
    assert not re.search(r"\d\.\d{4,}", record.caption + record.alt), "numbers with too many digits"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_row_of_the_table_says_where_its_figure_comes_from(results: RunResults, row: RunFigure) -> None:
    assert row.section and row.needs and (REPOSITORY / "notebooks" / f"{row.notebook}.ipynb").is_file()
    assert not row.part_of or FIGURES[row.part_of].section == row.section
    empty = dataclasses.replace(results, folder=results.folder / "nothing")
    with pytest.raises(Missing, match=f"is missing; notebook {row.notebook} makes it"):
        row.make(empty)


def test_figures_of_the_notebooks_are_rows_of_the_table() -> None:
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        for call in re.findall(r"show_saved\(params, ([^)]*)\)", path.read_text("utf-8")):
            for name in re.findall(r"\w+", call):
                assert FIGURES[name].notebook == path.stem


def test_a_picture_is_current_until_its_results_change(run: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(run, tmp_path / "tiny")
    results, row, out = load_results(mine), FIGURES["classes_per_image"], tmp_path / "out"
    picture = out / "classes_per_image.png"
    assert not row.is_current(results, picture), "there is none"
    figures.draw_all(results, out, only=[row.name], keep=True)
    drawn = picture.stat().st_mtime_ns
    figures.draw_all(results, out, only=[row.name], keep=True)
    assert picture.stat().st_mtime_ns == drawn, "drawn twice"
    os.utime(mine / "analysis.json", (drawn / 1e9 + 9, drawn / 1e9 + 9))
    write_text(mine / "maskers.json", "[]")
    assert row.is_current(results, picture), "a copy of the same results, and other results"
    write_json(mine / "analysis.json", read_json(mine / "analysis.json") | {"images": 4})
    assert str(row.changes(results, picture)) == "other analysis.json"
    figures.draw_all(results, out, only=[row.name], keep=True)
    assert picture.stat().st_mtime_ns > drawn
    other = dataclasses.replace(results, params=results.params.updated(lr=0.7))
    assert str(row.changes(other, picture)) == "other parameters"
    write_json(out / f"{row.name}.json", read_json(out / f"{row.name}.json") | {"run": "another"})
    assert str(row.changes(results, picture)) == "of run another"
    (mine / "analysis.json").unlink()
    assert row.changes(results, picture) is None


def test_a_caption_counts_the_images_that_a_training_learnt_from(tmp_path: Path) -> None:
    run, row = make_run(tmp_path), FIGURES["region_weights"]
    before = row.make(load_results(run))[1]
    write_stamp(run / "train" / "ours" / "stamp.json", Stamp("training", 1, {}, {}, dict.fromkeys("abcdefg", "")))
    after = row.make(load_results(run))[1]
    assert (before.images, after.images) == (5, 7) and "(7 images)" in after.source
    assert before.made_from != after.made_from


def test_a_picture_of_images_is_drawn_again_when_they_change(tmp_path: Path) -> None:
    results, row, picture = load_results(make_run(tmp_path)), FIGURES["samples"], tmp_path / "out" / "samples.png"
    figures.draw_all(results, picture.parent, only=[row.name])
    assert row.is_current(results, picture)
    data = tmp_path / "data"
    shutil.copy(data / "train" / f"{NAMES[0]}.png", data / "train" / f"{NAMES[1]}.png")
    assert str(row.changes(results, picture)) == "other images of train"
    data.rename(tmp_path / "elsewhere")
    assert row.is_current(results, picture), "results without their data: nothing can be drawn from other images"


def test_main_draws_and_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, out = tmp_path / "runs" / "part", tmp_path / "out"
    part.mkdir(parents=True)
    for name in ("params.yaml", "analysis.json"):
        shutil.copy(run / name, part / name)
    write_json(part / "contrast.json", CONTRAST)
    chosen = ["classes_per_image", "qualitative_grid", "training_curves", "ablations"]
    assert carb("figures", part, "--out", out, "--only", *chosen) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["classes_per_image", "training_curves", *chosen[1::2]]
    assert "03_train" in said and "05_ablations" in said and "04_small_object_evaluation" in said
    assert {path.name for path in out.iterdir()} == {f"classes_per_image.{kind}" for kind in ("png", "pdf", "json")}
    assert "contrast.json" in read_json(out / "classes_per_image.json")["made_from"]
    with pytest.raises(CarbError, match="did you mean 'confusion'"):
        carb("figures", part, "--only", "confusoin")


def test_make_all_writes_figures_and_tables(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "TABLE", [FIGURES["classes_per_image"]])
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    assert figures.make_all(run) == [tmp_path / "figures" / "tiny" / "classes_per_image.png"]
    assert (tmp_path / "figures" / "tiny" / "table_comparison.tex").is_file()


def test_damaged_results_fail_after_the_others_were_drawn(run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(run, tmp_path / "tiny")
    for path in broken.glob("train/ours/regions/*/*.npz"):
        path.write_bytes(b"PK\x03\x04 no more")
    results = load_results(broken)
    outcomes = figures.draw_all(results, tmp_path / "out", only=["region_maps", "classes_per_image"])
    assert [(o.name, o.damaged) for o in outcomes] == [("classes_per_image", False), ("region_maps", True)]
    assert outcomes[0].path.is_file() and ".npz" in outcomes[1].reason
    (broken / "evaluation" / "test" / "paper.json").write_text("{")
    with pytest.raises(CarbError, match=r"paper\.json"):
        figures.make_all(broken)


def test_results_of_other_classes_or_splits_are_not_mixed(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "tiny")
    (other / "evaluation" / "val" / "pseudo_masks_local.json").unlink()
    (other / "evaluation" / "test" / "pseudo_masks_global.json").unlink()
    on_val = evaluation("pseudo_masks_global", 0.4, RNG, "val")
    write_json(other / "evaluation" / "val" / "pseudo_masks_global.json", on_val)
    results = load_results(other)
    assert "pseudo_masks_global" not in results.evaluations
    assert {e["split"] for e in results.evaluations.values()} == {"test"}
    assert results.validation.keys() == {"pseudo_masks_no_labels", "pseudo_masks_global"}
    assert results.validation["pseudo_masks_global"] == on_val
    assert FIGURES["pseudo_mask_iou"].make(results)[1].split == "val"
    with pytest.raises(Missing, match="notebook 04"):
        FIGURES["gain_over_pseudo_masks"].make(results)
    with pytest.raises(CarbError, match="other classes"):
        load_results(other, small_params(run="tiny", dataset="cityscapes", classes="cityscapes"))


def test_no_figure_needs_a_model() -> None:
    folder = Path(carblib.__file__).parent
    for path in [*folder.glob("figures/*.py"), *folder.glob("results/*.py"), *folder.glob("run/report*.py")]:
        imported = {n.module for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)}
        assert not imported & {
            f"carblib.{m}"
            for m in ("masker", "network", "step", "training.loop", "infer", "clip_models", "stages.predict")
        }


# --- saving ------------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, dataset: str) -> tuple[matplotlib.figure.Figure, list[Path]]:
    figure = style.new_figure(words.COLUMN, 1.5)
    figure.subplots().plot([0, 1], [1, 0])
    params = small_params(dataset=dataset, clip="ViT-B/16")
    record = captions.figure_record(params, "A line.", "A falling line.", "test", 7, "train/paper at iteration 9")
    return figure, captions.save_figure(figure, tmp_path / "figure", record)


def test_save_figure_writes_png_pdf_and_record(tmp_path: Path) -> None:
    figure, (png, pdf, record) = saved(tmp_path, "camvid")
    default = matplotlib.rcParamsDefault
    leaked = [key for key in style._SETTINGS if matplotlib.rcParams[key] not in (default[key], [default[key]])]
    assert not leaked, "the style leaked into matplotlib's global settings"
    with Image.open(png) as picture:
        assert picture.size == (650, 300) and round(picture.info["dpi"][0]) == 200
    data = pdf.read_bytes()
    assert b"/FontFile2" in data and b"/Type3" not in data, "fonts must be embedded as TrueType"
    assert b"CreationDate" not in data, "a date makes two equal figures different files"
    wanted = {
        "run",
        "data",
        "split",
        "seed",
        "checkpoint",
        "images",
        "version",
        "caption",
        "source",
        "alt",
        "made_from",
    }
    content = read_json(record)
    assert set(content) == wanted and content["images"] == 7 and content["data"] == "CamVid"
    assert content["caption"] == "A line."
    assert content["source"].startswith("Data: CamVid, split test (7 images); seed 0; checkpoint train/paper")
    assert not figure.texts, "only rendered scenes get the footnote"
    written = [path.read_bytes() for path in (png, pdf, record)]
    _, again = saved(tmp_path, "camvid")
    assert [path.read_bytes() for path in again] == written, "the same results must give the same files"


def test_rendered_scenes_say_so_in_the_picture(tmp_path: Path) -> None:
    figure, paths = saved(tmp_path, "scenes")
    assert [text.get_text() for text in figure.texts] == ["rendered scenes, test"]
    height = figure.get_figheight()
    captions.save_figure(figure, tmp_path / "figure", captions.figure_record(small_params(), "A.", "B.", "test"))
    assert len(figure.texts) == 1 and figure.get_figheight() == height, "saving twice must not grow the figure"
    check_readable(figure)
    assert (
        "exact mask" in words.truth_name(small_params())
        and words.truth_name(small_params(dataset="camvid")) == "ground truth"
    )


def test_notebooks_show_a_figure_without_pyplot_and_in_style() -> None:
    figure = style.new_figure(2, 1)
    with style.paper_style():
        axes = figure.subplots()
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.draw_without_rendering()
    assert {tick.get_fontsize() for tick in axes.get_xticklabels()} == {7}, "whoever draws it"


# --- pictures of a run -----------------------------------------------------------------------------------------------


def test_grid_needs_saved_predictions(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "tiny"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("predictions", "pseudo_masks*"))
    shutil.copytree(run / "evaluation", bare / "evaluation", dirs_exist_ok=True)
    with pytest.raises(Missing, match="04_small_object_evaluation"):
        FIGURES["qualitative_grid"].make(load_results(bare))


def test_grid_shows_masks_of_the_chosen_images(results: RunResults) -> None:
    figure, record = FIGURES["qualitative_grid"].make(results)
    chosen = grids.pick_rows(results.evaluations["ours"]["per_image"])
    assert all(name in record.caption for name in chosen.values()) and set(chosen.values()) <= set(NAMES)
    # The ablated ones are the first to go.
    variants = ["pseudo_masks_global", "pseudo_masks_local", "plain", "paper", "ours", "ceiling"]
    labels = [" ".join(axes.get_xlabel().split()) for axes in figure.axes[:8]]
    assert [label.rstrip(" .0123456789") for label in labels] == ["image", *map(variant_label, variants), "exact mask"]
    check_readable(figure)
    assert min(axes.get_position().width * figure.get_figwidth() for axes in figure.axes) > 1.5, "inches of a panel"
    assert figure.get_figheight() < 10, "higher than a page"
    best = Path(results.folder, "predictions", "ours", "test", f"{chosen['best']}.png")
    expected = np.asarray(Image.open(best).convert("RGB"))
    np.testing.assert_array_equal(figure.axes[5].images[0].get_array(), expected)
    scores = {row["name"]: row["miou"] for row in results.evaluations["ours"]["per_image"]}
    assert labels[5].endswith(f" {100 * scores[chosen['best']]:.1f}")
    # In every panel of an image the same part is enlarged, which is framed in the image.
    truth = np.asarray(Image.open(results.folder.parents[1] / "data" / "testannot" / f"{chosen['best']}.png"))
    (top, left, bottom, right), name = closer.small_object_box(truth, CAMVID, closer.INSET)
    assert figure.axes[0].patches[0].get_bbox().extents.tolist() == [left, top, right, bottom]
    assert CAMVID.index(name) in CAMVID.small_ids and CAMVID.index(name) in truth[top:bottom, left:right]
    (inset,) = figure.axes[5].child_axes
    np.testing.assert_array_equal(inset.images[0].get_array(), expected[top:bottom, left:right])


def test_grid_columns_are_those_with_masks(run: Path, tmp_path: Path) -> None:
    few = shutil.copytree(run, tmp_path / "tiny")
    for variant in ("glv", "carb"):
        shutil.rmtree(few / "predictions" / variant)
    figure, record = FIGURES["qualitative_grid"].make(load_results(few))
    labels = [" ".join(axes.get_xlabel().split()).rstrip(" .0123456789") for axes in figure.axes[:8]]
    there = ("pseudo_masks_global", "pseudo_masks_local", "plain", "paper", "ours", "ceiling")
    assert labels[1:7] == [variant_label(v) for v in there]
    assert (
        "train/plain, train/paper, train/ours, train/ceiling at iteration 100" in record.source
        and "glv" not in record.checkpoint
    )
    # The network that stands for the run is shown whatever it is called.
    shutil.copytree(few / "predictions" / "ours", few / "predictions" / "plain2")
    own = read_json(few / "evaluation" / "test" / "ours.json") | {"variant": "plain2"}
    write_json(few / "evaluation" / "test" / "plain2.json", own)
    for variant in ("ours", "paper", "carb", "glv", "plain"):
        (few / "evaluation" / "test" / f"{variant}.json").unlink()
    figure, _ = FIGURES["qualitative_grid"].make(load_results(few))
    assert any(axes.get_xlabel().startswith("plain2 ") for axes in figure.axes[:8])


def test_images_that_do_not_fit_on_a_page_are_left_out() -> None:
    chosen = dict.fromkeys(("best", "median", "worst", "most small objects"), "a")
    assert closer._that_fit(chosen, (256, 512), 8) == chosen
    assert [*closer._that_fit(chosen, (360, 480), 8)] == ["median", "worst", "most small objects"]
    assert [*closer._that_fit(chosen, (4000, 480), 8)] == ["most small objects"]


def test_mask_examples_and_similarity_maps_show_what_was_saved(results: RunResults) -> None:
    figure, record = FIGURES["mask_examples"].make(results)
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles == ["image", "no labels", "with labels", "local views", "exact mask"]
    saved = read_mask(results.folder / "pseudo_masks_no_labels" / "val", NAMES[2], CAMVID)
    np.testing.assert_array_equal(figure.axes[6].images[0].get_array(), colour_mask(saved, CAMVID))
    assert record.images == 2 and "2 of 5 images, chosen by rule" in record.source
    assert all(name in record.caption for name in NAMES[1:3])
    figure, record = FIGURES["similarity_maps"].make(results)
    shown = [axes.get_title() for axes in figure.axes[:5]]
    assert shown == ["image", "pseudo-mask", "exact mask", "“pole”", "“sky”"]
    assert NAMES[0] in record.caption and "1 of 5 images" in record.source
    told = dataclasses.replace(results, params=results.params.updated(gate="none"))
    figure, record = FIGURES["mask_examples"].draw(told)
    assert [axes.get_title() for axes in figure.axes[1:3]] == ["whole image", "local views"]
    assert "without image-level labels" in record.caption
    with pytest.raises(Missing, match="^pseudo_masks/val/gone.png is missing; notebook 02"):
        grids._ways(told, captions.open_data(told, "val"), "gone")


def test_results_without_their_dataset_are_missing_not_damaged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    far = shutil.copytree(run, tmp_path / "tiny")
    params = load_results(far).params.updated(root=str(tmp_path / "elsewhere"))
    write_text(far / "params.yaml", params.to_yaml())
    pictures = ["samples", "similarity_maps", "mask_examples", "region_maps", "qualitative_grid"]
    assert carb("figures", far, "--out", tmp_path / "out", "--only", *pictures) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(pictures) and all(f"dataset not found at {tmp_path}/elsewhere" in line for line in said)
    (tmp_path / "elsewhere").mkdir()  # a folder of the right name that holds something else
    assert carb("figures", far, "--out", tmp_path / "out", "--only", *pictures) == 0
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["ablations", "classes_per_image", "confusion", "masker_comparison", "region_weights", "reliability_curves",
             "training_curves"],
)  # fmt: skip
def test_colours_mean_variants_and_classes_only(results: RunResults, name: str) -> None:
    figure, _ = FIGURES[name].make(results)
    picture = np.asarray(Image.open(io.BytesIO(style.rendered(figure, "png", 60, {}))).convert("RGB")).astype(int)
    assert np.ptp(picture, axis=-1).max() == 0, "a hue that would be taken for a variant"


def test_variants_have_a_marker_of_their_own_in_every_figure() -> None:
    rows = [variant for name, variant in VARIANTS.items() if name != "pseudo_masks"]
    assert len({row.marker for row in rows}) == len({row.colour for row in rows}) == len(rows)
    assert not {row.marker for row in rows} & set(style.MARKERS)
    markers = style.variant_markers(["mine", "ours", "other"])
    assert markers["ours"] == VARIANTS["ours"].marker and len(set(markers.values())) == 3


def test_records_say_what_they_rest_on(results: RunResults) -> None:
    records = {name: FIGURES[name].make(results)[1] for name in WATCHED}
    assert {name: record.images for name, record in records.items()} == WATCHED
    everything = "train/plain, train/glv, train/carb, train/paper, train/ours, train/ceiling at iteration 100"
    for name in ("iou_per_class", "object_size_curves"):
        assert records[name].checkpoint == everything
    compared = records["compare_trainings"]
    assert compared.checkpoint == "train/plain, train/paper, train/ours, over training"
    assert "training batches of split train" in compared.source and "split val (3 images)" in compared.source
    assert "seeds 0, 1, 2" in records["ablations"].source and "GLV: global-local views" in records["ablations"].caption
    weights = records["region_weights"]
    assert "split train (5 images)" in weights.source and "bicyclist (0.55)" in weights.alt


def test_ties_are_named(results: RunResults) -> None:
    tied = results.region_weights["ours"].copy()
    tied.loc[tied["class"].isin(["car", "pole", "sky"]) & (tied["iteration"] == 80), "weight"] = 0.901
    changed = dataclasses.replace(results, region_weights={"ours": tied})
    assert "largest for sky, pole and car (0.9)." in FIGURES["region_weights"].make(changed)[1].alt


def test_a_class_of_no_pixel_is_not_the_least_found(results: RunResults) -> None:
    counts = np.array(results.evaluations["ours"]["confusion"])
    counts[2], counts[3, 4], counts[3, 3] = 0, counts[3].sum(), 0
    changed = results.evaluations | {"ours": results.evaluations["ours"] | {"confusion": counts.tolist()}}
    alt = FIGURES["confusion"].make(dataclasses.replace(results, evaluations=changed))[1].alt
    assert alt.endswith(f"least found: {CAMVID.names[3]}, 0 % of its pixels.")


def test_record_of_a_trained_network_names_its_checkpoint(results: RunResults) -> None:
    _, record = FIGURES["confusion"].make(results)
    assert record.checkpoint == "train/ours at iteration 100" and record.split == "test" and record.images == 5
    assert read_json(results.folder / "evaluation" / "test" / "ours.json")["images"] == record.images
