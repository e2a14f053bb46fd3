"""Figures: drawn from saved results, true to the numbers, readable, whole, and saying where they come from."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fake_run import NAMES, evaluation, make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from carblib import figures, figures_run, style
from carblib.classes import CAMVID, CITYSCAPES
from carblib.errors import CarbError
from carblib.figures_curves import class_groups, spread_evenly
from carblib.figures_run import FIGURES
from carblib.files import read_json, write_json
from carblib.params import Params
from carblib.results import Missing, RunResults, in_order, load_results, variant_label

RNG = np.random.default_rng(1)
CONTRAST = {"name": "objects", "image_share": [0.1], "classes_per_image": [3, 1], "object_areas": [0.2, 0.3]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="module")
def results(run: Path) -> RunResults:
    return load_results(run)


def check_readable(figure: matplotlib.figure.Figure) -> None:
    """Nothing is cut off, no text is under 7 pt, no two tick labels of an axis overlap."""
    figure.set_layout_engine(figure.get_layout_engine())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    box, whole = figure.get_tightbbox(renderer), figure.bbox_inches
    assert box.x0 >= -0.01 and box.y0 >= -0.01, "cut off at the left or below"
    assert box.x1 <= whole.x1 + 0.01 and box.y1 <= whole.y1 + 0.01, "cut off at the right or above"
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert texts and min(t.get_fontsize() for t in texts) >= 7
    for axes in figure.findobj(matplotlib.axes.Axes):
        for axis, vertical in ((axes.xaxis, False), (axes.yaxis, True)):
            labels = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
            if any(t.get_rotation() not in (0, 90) for t in labels):
                continue  # boxes of slanted labels overlap, the labels do not
            boxes = [t.get_window_extent(renderer) for t in labels]
            spans = sorted((b.y0, b.y1) if vertical else (b.x0, b.x1) for b in boxes)
            for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
                assert end <= start + 1, f"tick labels overlap: {[t.get_text() for t in labels]}"


# --- all figures of a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "draw"), FIGURES, ids=[name for name, _ in FIGURES])
def test_every_figure_is_whole_readable_and_says_what_it_is(
    results: RunResults, name: str, draw: Callable[[RunResults], figures_run.Drawn]
) -> None:
    figure, record = draw(results)
    assert figure.get_figwidth() in (style.COLUMN, style.PAGE)
    check_readable(figure)
    assert "rendered scenes" in record.caption and "seed 0" in record.caption and record.alt
    assert "small one trained on rendered scenes" in record.caption and "OpenAI" not in record.caption + record.alt
    assert record.seed == 0 and record.version and record.run == "tiny"
    assert not re.search(r"\d\.\d{4,}", record.caption + record.alt), "numbers with too many digits"


def test_main_draws_and_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, out = tmp_path / "runs" / "part", tmp_path / "out"
    part.mkdir(parents=True)
    for name in ("params.yaml", "analysis.json"):
        shutil.copy(run / name, part / name)
    write_json(tmp_path / "contrast.json", CONTRAST)
    chosen = ["classes_per_image", "qualitative_grid", "training_curves", "ablations"]
    argv = [str(part), "--out", str(out), "--contrast", str(tmp_path / "contrast.json"), "--only", *chosen]
    assert figures.main(argv) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["classes_per_image", "training_curves", *chosen[1::2]]
    assert "03_train" in said and "05_ablations" in said and "04_small_object_evaluation" in said
    assert {path.name for path in out.iterdir()} == {f"classes_per_image.{kind}" for kind in ("png", "pdf", "json")}
    with pytest.raises(CarbError, match="did you mean 'confusion'"):
        figures.main([str(part), "--only", "confusoin"])


def test_make_all_writes_figures_and_tables(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", FIGURES[3:4])
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
    (broken / "evaluation" / "test" / "full.json").write_text("{")
    with pytest.raises(CarbError, match=r"full\.json"):
        figures.make_all(broken, out=tmp_path / "out")


def test_results_of_other_classes_or_splits_are_not_mixed(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "tiny")
    (other / "evaluation" / "val").mkdir()
    (other / "evaluation" / "test" / "pseudo_masks_global.json").unlink()
    on_val = evaluation("pseudo_masks_global", 0.4, RNG, "val")
    write_json(other / "evaluation" / "val" / "pseudo_masks_global.json", on_val)
    results = load_results(other)
    assert "pseudo_masks_global" not in results.evaluations
    assert {e["split"] for e in results.evaluations.values()} == {"test"}
    assert results.validation == {"pseudo_masks_global": on_val}
    assert dict(FIGURES)["pseudo_mask_iou"](results)[1].split == "val"
    with pytest.raises(Missing, match="notebook 04"):
        dict(FIGURES)["gain_over_pseudo_masks"](results)
    with pytest.raises(CarbError, match="other classes"):
        load_results(other, Params(run="tiny", dataset="cityscapes", classes="cityscapes"))


def test_no_figure_needs_a_model() -> None:
    folder = Path(style.__file__).parent
    for path in [*folder.glob("figures*.py"), folder / "style.py", folder / "tables.py", *folder.glob("report*.py")]:
        imported = {n.module for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)}
        assert not imported & {
            f"carblib.{m}" for m in ("masker", "network", "train", "infer", "clip_models", "predict")
        }


# --- saving ------------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, dataset: str) -> tuple[matplotlib.figure.Figure, list[Path]]:
    figure = style.new_figure(style.COLUMN, 1.5)
    figure.subplots().plot([0, 1], [1, 0])
    params = Params(dataset=dataset, clip="ViT-B/16")
    record = style.figure_record(params, "A line.", "A falling line.", "test", 7, "train/full at iteration 9")
    return figure, style.save_figure(figure, tmp_path / "figure", record)


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
    wanted = {"run", "data", "split", "seed", "checkpoint", "images", "version", "caption", "alt"}
    content = json.loads(record.read_text("utf-8"))
    assert set(content) == wanted and content["images"] == 7 and content["data"] == "CamVid"
    assert content["caption"].startswith("A line. Data: CamVid, split test (7 images); seed 0; checkpoint train/full")
    assert not figure.texts, "only rendered scenes get the footnote"
    written = [path.read_bytes() for path in (png, pdf, record)]
    _, again = saved(tmp_path, "camvid")
    assert [path.read_bytes() for path in again] == written, "the same results must give the same files"


def test_rendered_scenes_say_so_in_the_picture(tmp_path: Path) -> None:
    figure, paths = saved(tmp_path, "scenes")
    assert [text.get_text() for text in figure.texts] == ["rendered scenes, test"]
    height = figure.get_figheight()
    style.save_figure(figure, tmp_path / "figure", style.figure_record(Params(), "A.", "B.", "test"))
    assert len(figure.texts) == 1 and figure.get_figheight() == height, "saving twice must not grow the figure"
    check_readable(figure)
    assert "exact mask" in style.truth_name(Params()) and style.truth_name(Params(dataset="camvid")) == "ground truth"


def test_notebooks_show_a_figure_without_pyplot() -> None:
    assert style.new_figure(2, 1)._repr_png_().startswith(b"\x89PNG")


# --- numbers in the pictures -------------------------------------------------------------------------------------


def test_iou_bars_are_the_scores_sorted_by_pixels() -> None:
    one = evaluation("full", 0.5, RNG)
    one["iou"][4] = None
    axes = figures.iou_bars([one], CAMVID).axes[0]
    pixels = np.array(one["confusion"]).sum(1)
    order = sorted(range(11), key=lambda c: (-pixels[c], c))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert [label.rsplit(" ", 2)[0] for label in labels[:11]] == [CAMVID.names[c] for c in order]
    heights = [patch.get_height() for patch in axes.patches]
    expected = [100 * (one["iou"][c] or 0) for c in order] + [100 * one["miou"], 100 * one["small_miou"]]
    np.testing.assert_allclose(heights, expected)


def test_gain_is_the_difference_in_points() -> None:
    before, after = evaluation("pseudo_masks_global", 0.4, RNG), evaluation("full", 0.6, RNG)
    line = figures.gain_over(before, [after], CAMVID).axes[0].lines
    drawn = next(one for one in line if one.get_label() == variant_label("full")).get_xdata()
    assert drawn[-2] == pytest.approx(100 * (after["miou"] - before["miou"]))
    pixels = np.array(before["confusion"]).sum(1)
    largest = int(np.argsort(-pixels, kind="stable")[0])
    assert drawn[0] == pytest.approx(100 * (after["iou"][largest] - before["iou"][largest]))


def test_confusion_rows_sum_to_100() -> None:
    one = evaluation("full", 0.5, RNG)
    shown = figures.confusion_matrix(one, CAMVID).axes[0].collections[0].get_array()
    assert shown.shape == (11, 11), "the column of void predictions is left out while it is empty"
    np.testing.assert_allclose(shown.sum(1), 100)
    one["confusion"][0] = [0] * 12
    one["confusion"][1][11] = 5
    shown = figures.confusion_matrix(one, CAMVID).axes[0].collections[0].get_array()
    assert shown.shape == (11, 12) and np.isnan(np.ma.filled(shown, np.nan)[0]).all()


def test_many_classes_stay_readable() -> None:
    names = list(CITYSCAPES.names)
    shares = RNG.dirichlet(np.ones(19))
    many = {
        "pixel_share": shares.tolist(), "image_share": [0.5] * 19, "cooccurrence": np.full((19, 19), 4).tolist(),
        "classes_per_image": [11, 12], "object_areas": {name: [20, 50, 900] for name in names}, "size": [1024, 2048],
    }  # fmt: skip
    check_readable(figures.dataset_difficulty(many, CITYSCAPES, CONTRAST))
    iou = RNG.random(19).tolist()
    one = {"variant": "full", "confusion": RNG.integers(0, 99, (19, 20)).tolist(), "iou": iou, "miou": 0.5}
    one |= {"small_miou": None}
    check_readable(figures.iou_bars([one, one | {"variant": "some_variant"}], CITYSCAPES))
    check_readable(figures.confusion_matrix(one, CITYSCAPES))


def test_similarity_panel_and_boxes() -> None:
    image, mask = RNG.integers(0, 255, (20, 40, 3)).astype(np.uint8), np.full((20, 40), 3, np.uint8)
    maps = {name: RNG.random((5, 10)) for name in ("road", "pole", "sky", "car")}
    figure = figures.similarity_panel(image, maps, mask, CAMVID, truth=np.full((20, 40), 255, np.uint8))
    check_readable(figure)
    assert legend_of(figure) == ["road", "void"]
    row = figures.GridRow("", image, {"mask": mask[::2, ::2]}, boxes=[(0, 5, 10, 15)])
    check_readable(figures.qualitative_grid([row], CAMVID))


def legend_of(figure: matplotlib.figure.Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_legend_names_only_classes_in_view(results: RunResults) -> None:
    mask = np.array([[0, 0, 10]], np.uint8)
    row = figures.GridRow("best", np.zeros((1, 3, 3), np.uint8), {"mask": mask, "other": np.full((1, 3), 10, np.uint8)})
    assert legend_of(figures.qualitative_grid([row], CAMVID)) == ["sky", "bicyclist"]


def test_colorize_uses_the_palette_and_black_for_void() -> None:
    shown = style.colorize(np.array([[0, 10, 255]], np.uint8), CAMVID)
    assert shown.tolist() == [[[128, 128, 128], [0, 128, 192], [0, 0, 0]]]


def test_region_maps_blank_exactly_the_noisy_region() -> None:
    said, predicted = RNG.integers(0, 11, (2, 6, 8)).astype(np.uint8)
    regions = {7: {"pseudo_mask": said, "prediction": predicted, "consistent": said == predicted}}
    figure = figures.region_maps(np.zeros((6, 8, 3), np.uint8), regions, CAMVID, warmup=9)
    shown = figure.axes[1].images[0].get_array()
    blank = (np.asarray(shown) == 255).all(-1)
    np.testing.assert_array_equal(blank, said != predicted)
    assert "warm-up" in figure.axes[1].get_title() and "noisy region" in legend_of(figure)


def test_shrink_keeps_ids_and_shape() -> None:
    mask = RNG.integers(0, 11, (30, 60)).astype(np.uint8)
    small = style.shrink(mask, 20)
    assert small.shape == (10, 20) and set(np.unique(small)) <= set(np.unique(mask))
    assert style.shrink(mask, 60) is mask


# --- rules -------------------------------------------------------------------------------------------------------

SCORED = st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 3)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(SCORED)
def test_rows_are_chosen_by_rule(scores: list[tuple[float | None, int]]) -> None:
    rows = [{"name": f"{i:02d}", "miou": s, "small_objects": n} for i, (s, n) in enumerate(scores)]
    chosen, scored = figures.pick_rows(rows), [row for row in rows if row["miou"] is not None]
    value = {row["name"]: row["miou"] for row in scored}
    assert len(chosen) == min(4, len(scored)) == len(set(chosen.values()))
    assert chosen == figures.pick_rows(rows[::-1]), "the rule must not depend on the order of the images"
    if len(scored) > 2:
        assert value[chosen["best"]] == max(value.values()) and value[chosen["worst"]] == min(value.values())
        below = sum(v < value[chosen["median"]] for v in value.values())
        above = sum(v > value[chosen["median"]] for v in value.values())
        assert max(below, above) <= (len(value) + 1) // 2
    if len(scored) > 3:
        left = [r for r in scored if r["name"] not in [chosen[k] for k in ("best", "median", "worst")]]
        most = next(r for r in scored if r["name"] == chosen["most small objects"])
        assert most["small_objects"] == max(r["small_objects"] for r in left)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 999), min_size=1, unique=True), st.integers(2, 6), st.integers(0, 999))
def test_iterations_are_spread_evenly(iterations: list[int], count: int, warmup: int) -> None:
    chosen = spread_evenly(iterations, count, warmup)
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(iterations)
    assert len(chosen) == min(count, len(iterations)) and {min(iterations), max(iterations)} <= set(chosen)
    if warmup and count > 2 and len(iterations) > count:
        nearest = min(abs(i - warmup) for i in iterations)
        assert min(abs(i - warmup) for i in chosen) == nearest


def test_class_groups_are_sums_over_pixels_not_means_over_classes() -> None:
    counts = RNG.integers(0, 50, (11, 2, 2))  # class, consistent or not, right or not
    rows = []
    for c, name in enumerate(CAMVID.names):
        noisy, consistent = counts[c]
        rows.append({"iteration": 3, "class": name, "pixels": counts[c].sum(),
                     "share_consistent": consistent.sum() / counts[c].sum(),
                     "precision_consistent": consistent[1] / consistent.sum(),
                     "precision_noisy": noisy[1] / noisy.sum()})  # fmt: skip
    groups = class_groups(pd.DataFrame(rows), CAMVID)
    small = [c for c in range(11) if CAMVID.small[c]]
    for name, ids in (("small classes", small), ("all classes", range(11))):
        chosen = counts[list(ids)].sum(0)
        got = groups[name].iloc[0]
        assert got["share"] == pytest.approx(chosen[1].sum() / chosen.sum())
        assert got["inside"] == pytest.approx(chosen[1, 1] / chosen[1].sum())
        assert got["outside"] == pytest.approx(chosen[0, 1] / chosen[0].sum())


def test_order_and_colours_of_variants() -> None:
    assert in_order(["ceiling", "zz", "full", "aa", "pseudo_masks_global"])[0] == "pseudo_masks_global"
    assert in_order(["ceiling", "zz", "full", "aa"]) == ["full", "aa", "zz", "ceiling"]
    colours = style.variant_colours(["full", "mine", "other"])
    assert len(set(colours.values())) == 3 and colours["full"] == style.variant_colours(["full"])["full"]


def test_legend_columns_fit() -> None:
    figure = style.new_figure(style.COLUMN, 1)
    assert style.legend_columns(figure, ["a"] * 4) == 4
    assert style.legend_columns(figure, ["a long name of a class"] * 4) == 1


def test_grid_needs_saved_predictions(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "tiny"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("predictions", "pseudo_masks*"))
    shutil.copytree(run / "evaluation", bare / "evaluation", dirs_exist_ok=True)
    with pytest.raises(Missing, match="04_small_object_evaluation"):
        dict(FIGURES)["qualitative_grid"](load_results(bare))


def test_grid_shows_masks_of_the_chosen_images(results: RunResults) -> None:
    figure, record = dict(FIGURES)["qualitative_grid"](results)
    chosen = figures.pick_rows(results.evaluations["ours"]["per_image"])
    assert all(name in record.caption for name in chosen.values()) and set(chosen.values()) <= set(NAMES)
    variants = ["pseudo_masks_global", "plain", "full", "ours"]
    titles = [" ".join(axes.get_title().split()) for axes in figure.axes[:6]]
    assert titles == ["image", *map(variant_label, variants), "exact mask"]
    best = Path(results.folder, "predictions", "ours", "test", f"{chosen['best']}.png")
    expected = np.asarray(Image.open(best).convert("RGB"))
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), expected)
    scores = {row["name"]: row["miou"] for row in results.evaluations["ours"]["per_image"]}
    assert figure.axes[4].get_xlabel() == f"mIoU {100 * scores[chosen['best']]:.1f}"


def test_record_of_a_trained_network_names_its_checkpoint(results: RunResults) -> None:
    _, record = dict(FIGURES)["confusion"](results)
    assert record.checkpoint == "train/ours at iteration 100" and record.split == "test" and record.images == 5
    assert read_json(results.folder / "evaluation" / "test" / "ours.json")["images"] == record.images
