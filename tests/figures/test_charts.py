"""Drawing functions: the numbers in the pictures are the results' own, and everything can be read."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fake_run import check_readable, evaluation, legend_of
from hypothesis import given, settings
from hypothesis import strategies as st

from carblib.classes import CAMVID, CITYSCAPES, ClassSet
from carblib.figures import ablations, data, grids, regions, scores, style, training
from carblib.figures.data import pixel_quantiles
from carblib.figures.regions import spread_apart, spread_evenly
from carblib.params import Masker, Params
from carblib.results import words
from carblib.results.saved import RunResults, class_groups
from carblib.variants import VARIANTS, in_order, variant_label

RNG = np.random.default_rng(1)
CONTRAST = {"name": "objects", "image_share": [0.1], "classes_per_image": [3, 1], "object_areas": [0.2, 0.3]}


def analysed(analysis: dict, dataset: str = "camvid", contrast: dict | None = None) -> RunResults:
    """A run of which nothing but the data is known."""
    counted = {"split": "train", "images": 2} | analysis
    return RunResults(Path(), Params(dataset=dataset, classes=dataset), {}, {}, counted, None, None, {}, {}, contrast)


# --- numbers in the pictures -------------------------------------------------------------------------------------


def test_iou_points_are_the_scores_sorted_by_pixels() -> None:
    one = evaluation("paper", 0.5, RNG)
    one["iou"][4] = None
    axes = scores.iou_points([one], CAMVID).axes[0]
    pixels = np.array(one["confusion"]).sum(1)
    order = sorted(range(11), key=lambda c: (-pixels[c], c))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert [label.rsplit(" ", 2)[0] for label in labels[:11]] == [CAMVID.names[c] for c in order]
    (points,) = [line for line in axes.lines if line.get_label() == variant_label("paper")]
    ious = [np.nan if one["iou"][c] is None else 100 * one["iou"][c] for c in order]
    np.testing.assert_allclose(points.get_ydata(), [*ious, 100 * one["miou"], 100 * one["small_miou"]])
    assert points.get_marker() == VARIANTS["paper"].marker, "told apart without colours"


def test_gain_is_the_difference_in_points() -> None:
    before, after = evaluation("pseudo_masks_global", 0.4, RNG), evaluation("paper", 0.6, RNG)
    line = scores.gain_over(before, [after], CAMVID).axes[0].lines
    drawn = next(one for one in line if one.get_label() == variant_label("paper")).get_xdata()
    assert drawn[-2] == pytest.approx(100 * (after["miou"] - before["miou"]))
    pixels = np.array(before["confusion"]).sum(1)
    largest = int(np.argsort(-pixels, kind="stable")[0])
    assert drawn[0] == pytest.approx(100 * (after["iou"][largest] - before["iou"][largest]))


def test_confusion_rows_sum_to_100() -> None:
    one = evaluation("paper", 0.5, RNG)
    shown = scores.confusion_matrix(one, CAMVID).axes[0].collections[0].get_array()
    assert shown.shape == (11, 11), "the column of void predictions is left out while it is empty"
    np.testing.assert_allclose(shown.sum(1), 100)
    one["confusion"][0] = [0] * 12
    one["confusion"][1][11] = 5
    shown = scores.confusion_matrix(one, CAMVID).axes[0].collections[0].get_array()
    assert shown.shape == (11, 12) and np.isnan(np.ma.filled(shown, np.nan)[0]).all()


def test_many_classes_stay_readable() -> None:
    names = list(CITYSCAPES.names)
    shares = RNG.dirichlet(np.ones(19))
    many = {
        "pixel_share": shares.tolist(), "image_share": [0.5] * 19, "cooccurrence": np.full((19, 19), 4).tolist(),
        "classes_per_image": [11, 12], "object_areas": {name: [20, 50, 900] for name in names}, "size": [1024, 2048],
    }  # fmt: skip
    check_readable(data.dataset_difficulty(analysed(many, "cityscapes", CONTRAST))[0])
    iou = RNG.random(19).tolist()
    one = {"variant": "paper", "confusion": RNG.integers(0, 99, (19, 20)).tolist(), "iou": iou, "miou": 0.5}
    none = [None, None]
    one |= {"small_miou": None, "iou_interval": [none] * 19, "miou_interval": none, "small_miou_interval": none}
    check_readable(scores.iou_points([one, one | {"variant": "some_variant"}], CITYSCAPES))
    check_readable(scores.confusion_matrix(one, CITYSCAPES))


def test_similarity_panel_and_boxes() -> None:
    image, mask = RNG.integers(0, 255, (20, 40, 3)).astype(np.uint8), np.full((20, 40), 3, np.uint8)
    maps = {name: RNG.random((5, 10)) for name in ("road", "pole", "sky", "car")}
    masks = {"pseudo-mask": mask, "ground truth": np.full((20, 40), 255, np.uint8)}
    figure = grids.similarity_panel(image, masks, maps, CAMVID)
    check_readable(figure)
    assert legend_of(figure) == ["road", "void"]
    row = grids.GridRow("", image, {"mask": mask[::2, ::2]}, boxes=[(0, 5, 10, 15)])
    drawn = grids.qualitative_grid([row], CAMVID)
    check_readable(drawn)
    assert {box.get_bbox().extents.tolist() == [5, 0, 15, 10] for box in drawn.axes[0].patches} == {True}


def test_legend_names_only_classes_in_view() -> None:
    mask = np.array([[0, 0, 10]], np.uint8)
    row = grids.GridRow("best", np.zeros((1, 3, 3), np.uint8), {"mask": mask, "other": np.full((1, 3), 10, np.uint8)})
    assert legend_of(grids.qualitative_grid([row], CAMVID)) == ["sky", "bicyclist"]


def test_region_maps_blank_exactly_the_noisy_region() -> None:
    said, predicted = RNG.integers(0, 11, (2, 6, 8)).astype(np.uint8)
    maps = {7: {"pseudo_mask": said, "prediction": predicted, "consistent": said == predicted}}
    figure = regions.draw_region_maps(np.zeros((6, 8, 3), np.uint8), maps, CAMVID, warmup=9)
    shown = figure.axes[1].images[0].get_array()
    blank = (np.asarray(shown) == 255).all(-1)
    np.testing.assert_array_equal(blank, said != predicted)
    assert "warm-up" in figure.axes[1].get_title() and "noisy region" in legend_of(figure)


def test_shrink_keeps_ids_and_shape() -> None:
    mask = RNG.integers(0, 11, (30, 60)).astype(np.uint8)
    small = style.shrink(mask, 20)
    assert small.shape == (10, 20) and set(np.unique(small)) <= set(np.unique(mask))
    assert style.shrink(mask, 60) is mask


# Machado et al. 2009, deuteranopia, on linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def seen(colours: list[tuple[int, int, int]]) -> np.ndarray:
    """CIE Lab (N, 3) of RGB colours 0–255 as they are seen with deuteranopia."""
    rgb = np.array(colours) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt((linear @ DEUTERANOPIA.T).clip(1e-3, 1) @ XYZ.T / (0.9505, 1, 1.089)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize(
    ("classes", "alike", "before", "after"),
    [(CAMVID, {("building", "pedestrian"), ("sky", "signsymbol")}, 7, 18),
     (CITYSCAPES, {("fence", "pole"), ("vegetation", "person")}, 7, 7.5)],
)  # fmt: skip
def test_outlines_tell_apart_what_colours_do_not(
    classes: ClassSet, alike: set[tuple[str, str]], before: float, after: float
) -> None:
    places, white = seen(list(classes.palette)), seen([(255, 255, 255)])
    pairs = [(i, j) for i in range(len(classes)) for j in range(i)]
    colour = {pair: np.linalg.norm(places[pair[0]] - places[pair[1]]) for pair in pairs}
    assert min(colour.values()) < before, "ΔE, by colour alone"
    assert min(colour[i, j] for i, j in pairs if classes.small[i] == classes.small[j]) > after, "neither is outlined"
    assert all(classes.small[classes.index(large)] < classes.small[classes.index(small)] for large, small in alike)
    assert np.linalg.norm(places - white, axis=1).min() > 25, "an outline that is not seen"


def test_small_classes_are_outlined_in_masks_and_legend() -> None:
    mask = np.full((8, 8), CAMVID.index("building"), np.uint8)
    rows = []
    for name in ("tree", "pedestrian"):
        mask[2:5, 3:6] = CAMVID.index(name)
        rows.append(grids.GridRow(name, np.zeros((16, 16, 3), np.uint8), {"mask": mask.copy()}))
    figure = grids.qualitative_grid(rows, CAMVID)
    plain, outlined = figure.axes[1], figure.axes[3]
    assert not plain.collections and outlined.get_xlim() == (0, 16) and outlined.get_ylim() == (16, 0)
    (line,) = outlined.collections[0].get_paths()
    assert line.get_extents().extents.round().tolist() == [6, 4, 12, 10], "twice the mask's pixels"
    edges = [matplotlib.colors.to_hex(patch.get_edgecolor()) for patch in figure.legends[0].get_patches()]
    assert [edge == "#ffffff" for edge in edges] == [name == "pedestrian" for name in legend_of(figure)]


# --- rules -------------------------------------------------------------------------------------------------------

SCORED = st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 3)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(SCORED)
def test_rows_are_chosen_by_rule(scores: list[tuple[float | None, int]]) -> None:
    rows = [{"name": f"{i:02d}", "miou": s, "small_objects": n} for i, (s, n) in enumerate(scores)]
    chosen, scored = grids.pick_rows(rows), [row for row in rows if row["miou"] is not None]
    value = {row["name"]: row["miou"] for row in scored}
    assert len(chosen) == min(4, len(scored)) == len(set(chosen.values()))
    assert chosen == grids.pick_rows(rows[::-1]), "the rule must not depend on the order of the images"
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
    assert in_order(["ceiling", "zz", "paper", "aa", "pseudo_masks_global"])[0] == "pseudo_masks_global"
    assert in_order(["ceiling", "zz", "paper", "aa"]) == ["paper", "aa", "zz", "ceiling"]
    colours = style.variant_colours(["paper", "mine", "other"])
    assert len(set(colours.values())) == 3 and colours["paper"] == style.variant_colours(["paper"])["paper"]


def test_legend_columns_fit() -> None:
    figure = style.new_figure(words.COLUMN, 1)
    assert style.legend_columns(figure, ["a"] * 4) == 4
    assert style.legend_columns(figure, ["a long name of a class"] * 4) == 1


# --- what a reader would stumble over ------------------------------------------------------------------------------


def ablation_rows(paths: list[str], maskers: list[str]) -> list[dict]:
    variants = ["pseudo_masks", "plain", "glv", "carb", "paper", "ours"]
    rows = [
        {"variant": v, "path": p, "masker": m, "seed": s, "miou": 0.3 + s / 50, "small_miou": 0.1 + s / 90}
        for v in variants for p in paths for m in maskers for s in range(3)
    ]  # fmt: skip
    return [*rows, rows[-1] | {"variant": "ceiling", "path": paths[0], "masker": maskers[0], "miou": 0.5}]


def test_ablations_need_a_legend_only_for_what_there_are_several_of() -> None:
    one = ablations.ablation_plot(ablation_rows(["single"], ["value_path"]))
    assert not one.legends
    three = ablations.ablation_plot(ablation_rows(["single", "single_crf", "dual"], ["value_path"]))
    assert legend_of(three) == ["single path", "single + CRF path", "dual path"]
    both = ablations.ablation_plot(ablation_rows(["single", "dual"], ["value_path", "key_key"]))
    assert legend_of(both) == ["single path", "dual path", "value path masker", "key key masker"]
    every = ablations.ablation_plot(ablation_rows(["dual"], [*get_args(Masker)]))
    for figure in (one, three, both, every):
        check_readable(figure)
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in three.legends[0].get_lines()}
    assert all(len(set(ways)) == 3 for ways in list(zip(*looks, strict=True))[1:]), "told apart by colour alone"
    drawn = {line.get_marker() for line in three.axes[0].lines} - {"|", "None", "D"}
    assert drawn == {marker for _, marker, _ in looks}
    # The ceiling belongs to no path: it stands in the middle of its row, in ink.
    ends = [line for line in three.axes[0].lines if line.get_marker() == "|"]
    assert set(ends[-1].get_ydata()) == {6} and ends[-1].get_color() == style.INK
    fills = [(line.get_fillstyle(), line.get_markerfacecolor()) for line in every.legends[0].get_lines()]
    assert len(fills) == len(set(fills)) == len(get_args(Masker))


def test_ablations_say_only_what_is_drawn() -> None:
    rows = [
        {"variant": "paper", "path": path, "masker": "naclip", "seed": seed, "miou": miou, "small_miou": 0.1}
        for path, seed, miou in (("single", 0, 0.2), ("single", 1, 0.3), ("dual", 0, 0.5), ("dual", 1, None))
    ]
    assert ablations._means_in_words(rows) == f"{variant_label('paper')} 25.0 to 50.0", "no mean over both paths"
    assert ablations._means_in_words(rows[:2]).endswith(" 25.0")


def ways(**interval: list) -> RunResults:
    rows = [{"masker": m, "miou": v, "small_miou": None, "seconds": 0.1, "split": "val", "images": 12} | interval
            for m, v in (("value_path", 0.3), ("naclip", 0.4))]  # fmt: skip
    return RunResults(Path(), Params(), {}, {}, None, rows, None, {}, {})


def test_maskers_are_not_ranked_by_overlapping_intervals() -> None:
    figure, record = ablations.masker_comparison(ways(miou_interval=[0.25, 0.5], small_miou_interval=[None, None]))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["value path", "naclip"]
    spans = [collection.get_segments()[0][:, 0].tolist() for collection in axes.collections]
    assert spans == [[25, 50]] * 2 and "overlap are not ranked" in record.caption
    old = ablations.masker_comparison(ways())[1].caption
    assert "bootstrap" not in old and "12 images do not rank them" in old


@pytest.mark.parametrize("iterations", [[5, 9], [1, 2, 3, 4, 5, 6]])
def test_few_measured_weights_are_no_curve(iterations: list[int]) -> None:
    rows = [{"iteration": i, "class": c, "weight": 0.5} for i in iterations for c in CAMVID.names]
    params = Params(dataset="camvid", classes="camvid")
    run = RunResults(Path(), params, {}, {}, None, None, None, {}, {}, None, {"ours": pd.DataFrame(rows)})
    figure, record = regions.region_weights(run)
    curves = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "s")]
    few = len(iterations) == 2
    assert len(curves) == 11 and all((line.get_linestyle() == ":") == few for line in curves)
    assert ("Measured at 2 iterations only (5, 9)" in record.caption) == few
    assert {line.get_marker() for line in curves} == {"o", "s"}, "small and large told apart by grey alone"


def weights_of(values: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame([{"iteration": i, "class": c, "weight": w} for i in (5, 9) for c, w in values.items()])


@pytest.mark.parametrize("class_set", [CAMVID, CITYSCAPES], ids=lambda one: one.name)
def test_region_weights_are_named_beside_their_lines(class_set: ClassSet) -> None:
    figure = regions.draw_region_weights(weights_of({name: 0.5 for name in class_set.names}), class_set)
    check_readable(figure)
    renderer = figure.canvas.get_renderer()
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    assert set(texts) == {f"{name} 0.5" for name in class_set.names}
    boxes = sorted((t.get_window_extent(renderer) for t in texts.values()), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 0.5 for low, high in zip(boxes, boxes[1:], strict=False)), "names overlap"
    bold = {name for name in texts if texts[name].get_fontweight() == "bold"}
    assert bold == {f"{class_set.names[c]} 0.5" for c in class_set.small_ids}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.08))
def test_labels_are_spread_apart(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    places = spread_apart(wanted, gap)
    assert (np.diff(places) >= gap - 1e-9).all() and places.min() >= -1e-9 and places.max() <= 1 + 1e-9
    free = np.diff(wanted, prepend=-1, append=2) >= gap
    if free.all():
        np.testing.assert_allclose(places, wanted, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_object_percentiles_are_by_pixels(areas: list[int]) -> None:
    pixels = np.sort(np.repeat(areas, areas))  # the area of the object every single pixel lies in
    expected = [pixels[int(np.ceil(len(pixels) * q - 1e-9)) - 1] for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert pixel_quantiles(np.array(areas, float)).tolist() == [max(e, pixels[0]) for e in expected]


ANALYSIS = {
    "pixel_share": [0.6, 0.3, 0.099, 0.001, *[0.0] * 7], "image_share": [0.5] * 11, "classes_per_image": [3, 4],
    "cooccurrence": np.full((11, 11), 4).tolist(), "size": [100, 100],
    "object_areas": {"sky": [5000] + [1] * 50, "pole": [40, 50]},
}  # fmt: skip


def test_fragments_do_not_make_the_sky_small() -> None:
    axes = data.object_sizes(analysed(ANALYSIS))[0].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["sky", "pole"]


def test_pixel_shares_are_dots_up_to_100_percent() -> None:
    figure = data.class_frequency(analysed(ANALYSIS))[0]
    check_readable(figure)
    axes = figure.axes[1]
    assert not axes.patches and axes.get_xlim()[1] == 100
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose([dot.get_xdata()[0] for dot in dots], [60, 30, 9.9, 0.1])
    assert [text.get_text() for text in axes.texts][-7:] == ["none"] * 7


def test_classes_per_image_have_a_legend_only_beside_other_data() -> None:
    alone, beside = (data.classes_per_image(analysed(ANALYSIS, contrast=other))[0] for other in (None, CONTRAST))
    assert alone.axes[0].get_legend() is None and "mean 3.5" in alone.axes[0].get_title()
    named = {text.get_text() for text in beside.axes[0].get_legend().get_texts()}
    assert named == {"this data: mean 3.5", "objects: mean 1.2"}
    longer = data.classes_per_image(analysed(ANALYSIS, contrast=CONTRAST | {"classes_per_image": [1] * 9}))[0]
    assert longer.axes[0].get_xlim()[1] > 9.5, "its last bar is cut off"


def test_intervals_are_drawn_whole() -> None:
    one = evaluation("pseudo_masks_global", 0.4, RNG)
    one["iou"][3], one["iou_interval"][3] = None, [None, None]
    (lines,) = scores.iou_points([one], CAMVID).axes[0].collections
    spans = {tuple(np.round(path.vertices[:, 1], 6)) for path in lines.get_paths() if not np.isnan(path.vertices).any()}
    known = [v for v in [*one["iou_interval"], one["miou_interval"], one["small_miou_interval"]] if v[0] is not None]
    assert spans == {tuple(np.round(100 * np.array(span), 6)) for span in known}


def test_size_curves_fit_their_own_values_and_stand_side_by_side() -> None:
    low, high = evaluation("plain", 0.1, RNG), evaluation("paper", 0.2, RNG)
    for one in (low, high):
        one["objects"]["all_small"] = one["objects"]["all_small"] | {"iou": [0.01, 0.02, None, 0.01]}
    recall, iou = scores.size_curves([low, high]).axes
    assert (recall.get_ylabel(), iou.get_ylabel()) == ("recall (%)", "IoU (%)")
    assert 20 < recall.get_ylim()[1] < 23 and 2 < iou.get_ylim()[1] < 2.3
    first, second = (set(line.get_xdata()) for line in iou.lines)
    assert not first & second, "equal values would hide each other"


def test_variants_that_may_coincide_have_other_lines() -> None:
    for same in (("plain", "carb"), ("glv", "paper"), ("paper", "ours"), ("glv", "ours")):
        assert len({str(style.variant_line(variant)) for variant in same}) == 2


def test_curves_share_the_range_of_the_training() -> None:
    log = pd.DataFrame({
        "iteration": [50, 100], "loss": [2.0, 1], "weight": [np.nan, 0.5], "consistent_share": [0.5, 0.6],
        "val_miou": [np.nan, 0.3], "val_small_miou": [np.nan, 0.1],
    })  # fmt: skip
    row = {"class": "car", "pixels": 9, "share_consistent": 0.5, "precision_consistent": 0.5, "precision_noisy": 0.5}
    reliability = pd.DataFrame([row | {"iteration": i} for i in (60, 100)])
    drawn = (
        training.draw_training(log, 50),
        training.draw_trainings({"plain": log, "paper": log}, 50),
        regions.draw_reliability(reliability, CAMVID, 50),
    )
    assert {axes.get_xlim() for figure in drawn for axes in figure.axes} == {(0, 102)}
