"""A tiny run with every kind of saved result, made of noise: what figures, tables and the report are tested on.

And what a test looks at in a figure: is it whole and readable, and what does its legend say?
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from small import small_params

from carblib import __version__
from carblib.base import files, images
from carblib.base.stamps import write_stamp
from carblib.classes import CAMVID
from carblib.data.mask_folders import clip_masks
from carblib.data.readers import open_split
from carblib.data.sources import mask_stamp, sources_of
from carblib.figures.style import paper_style
from carblib.params import Params

SIZE = (32, 64)
NAMES = [f"{i:06d}" for i in range(1, 6)]
MASKS = {
    "pseudo_masks_no_labels": "pseudo_masks_no_labels",
    "pseudo_masks_global": "pseudo_masks",
    "pseudo_masks_local": "pseudo_masks_local",
}
SCORES = {
    "pseudo_masks_no_labels": 0.3,
    "pseudo_masks_global": 0.4,
    "pseudo_masks_local": 0.5,
    "plain": 0.55,
    "glv": 0.6,
    "carb": 0.58,
    "paper": 0.7,
    "ours": 0.72,
    "ceiling": 0.9,
}


def make_run(root: Path, **changes: Any) -> Path:
    """Write a project folder under `root` with rendered-scene data and runs/tiny; return the run's folder."""
    rng = np.random.default_rng(0)
    settings = {"iterations": 100, "warmup": 60, "variants": ["plain", "paper", "ours"], **changes}
    params = small_params(run="tiny", dataset="scenes", root=str(root / "data"), **settings)
    run = root / "runs" / "tiny"
    files.write_text(run / "params.yaml", params.to_yaml())
    truths = write_data(root / "data", rng)
    for variant, score in SCORES.items():
        files.write_json(run / "evaluation" / "test" / f"{variant}.json", evaluation(variant, score, rng))
        folder = MASKS.get(variant, f"predictions/{variant}")
        for name in NAMES:
            noise = rng.integers(0, 11, SIZE).astype(np.uint8)
            mask = np.where(rng.random(SIZE) < score, truths[name] % 11, noise).astype(np.uint8)
            images.write_index_png(run / folder / "test" / f"{name}.png", mask, CAMVID.palette)
    write_masks_of_val(run, params, truths, rng)
    for variant in ("plain", "paper", "ours"):
        write_training(run / "train" / variant, variant, rng)
    files.write_json(run / "analysis.json", analysis(rng))
    measured = {"small_miou": None, "split": "val", "images": 4}
    maskers = [{"masker": m, "miou": 0.3 + i / 50, "seconds": 0.05 * i} | measured for i, m in enumerate("ab")]
    files.write_json(run / "maskers.json", maskers)
    files.write_json(run / "ablations.json", ablations(rng))
    files.write_text(run / "notebooks" / "01_dataset_analysis.html", "<p>page</p>")
    files.write_text(run / "notebooks" / "03_train.html", "<p>page</p>")
    files.write_json(run / "done" / "01_dataset_analysis.json", {"finished": "2026-01-02T03:04:05+00:00"})
    return run


def write_masks_of_val(run: Path, params: Params, truths: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Write what notebook 02 leaves of the validation split: masks, their evaluations, and what its figures need."""
    split, ways = open_split(params, "val"), clip_masks(params.updated(gate="labels"), "val")
    labels = np.ones((len(split), len(CAMVID)), bool)
    for variant, folder in MASKS.items():
        files.write_json(
            run / "evaluation" / "val" / f"{variant}.json", evaluation(variant, SCORES[variant], rng, "val")
        )
        masks = ways[variant]
        write_stamp(run / folder / "val" / "stamp.json", mask_stamp(masks.params, split, labels, masks.local))
        for name in NAMES:
            mask = (truths[name] + [*MASKS].index(variant)) % 11
            images.write_index_png(run / folder / "val" / f"{name}.png", mask.astype(np.uint8), CAMVID.palette)
    noise = rng.integers(0, 11, (1, *SIZE)).astype(np.uint8)
    sources = [*sources_of(mask_stamp(params, split, labels)).items()]
    write_npz(run / "mask_examples.npz", split="val", made_from=sources, rules=["best", "worst"], names=NAMES[1:3])
    words, similarity = ["pole", "sky"], rng.random((2, 4, 8)).astype(np.float32)
    write_npz(
        run / "similarity_maps.npz",
        split="val",
        made_from=sources,
        name=NAMES[0],
        words=words,
        similarity=similarity,
        mask=noise[0],
    )


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays as npz."""
    data = io.BytesIO()
    np.savez_compressed(data, **{key: np.asarray(value) for key, value in arrays.items()})
    files.write_bytes(path, data.getvalue())


def write_data(root: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Write three splits in CamVid's SegNet form; return the test masks (11 = void)."""
    truths = {}
    for split in ("train", "val", "test"):
        for name in NAMES:
            mask = np.repeat(np.repeat(rng.integers(0, 12, (4, 8)), 8, 0), 8, 1).astype(np.uint8)
            images.write_image(root / split / f"{name}.png", rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8))
            images.write_image(root / f"{split}annot" / f"{name}.png", mask)
            truths[name] = mask
    return truths


def evaluation(variant: str, score: float, rng: np.random.Generator, split: str = "test") -> dict[str, Any]:
    """An evaluation as evaluate.py writes it; class c has 10^(c mod 5) · 10 true pixels, `score` of them found."""
    counts = np.zeros((11, 12), np.int64)
    for c in range(11):
        total = 10 ** (c % 5) * 10
        counts[c, c] = round(total * score)
        counts[c, (c + 1) % 11] += total - counts[c, c]
    hits = np.diag(counts)
    iou = hits / (counts.sum(1) + counts[:, :11].sum(0) - hits)
    small = list(CAMVID.small_ids)
    labels, found = ["10–39 px", "40–159 px", "160–639 px", "≥ 640 px"], [score / 2, score, None, score]
    table = {"count": [7, 5, 0, 2], "recall": found, "iou": found}
    means = {"miou": iou.mean(), "small_miou": iou[small].mean()}
    return {
        "run": "tiny", "variant": variant, "split": split, "images": len(NAMES), "seed": 0, "version": __version__,
        "iteration": None if variant.startswith("pseudo") else 100,
        "class_names": list(CAMVID.names), "small_ids": small, "confusion": counts.tolist(), "iou": iou.tolist(),
        "iou_interval": [[max(v - 0.02, 0), min(v + 0.05, 1)] for v in iou],
        **{key: float(value) for key, value in means.items()},
        **{f"{key}_interval": [value - 0.02, value + 0.05] for key, value in means.items()},
        "per_image": [
            {"name": name, "miou": float(rng.random()), "small_recall": 0.5, "small_objects": i}
            for i, name in enumerate(NAMES)
        ],
        "objects": {"bins": [10, 40, 160, 640], "labels": labels, "per_class": {"pole": table}, "all_small": table},
    }  # fmt: skip


def write_training(folder: Path, variant: str, rng: np.random.Generator) -> None:
    """Write log.csv, reliability.csv, regions and done.json of one training."""
    log, reliability = [], []
    for i in range(10, 101, 10):
        weight = 0.3 if variant != "plain" and i > 60 else float("nan")
        parts = {"consistent": 0.5, "noisy": 2.0, "local_consistent": 0.4 * (variant != "plain"), "local_noisy": 0.0}
        log.append({"iteration": i, "loss": 100 / i, **parts, "weight": weight, "consistent_share": i / 100, "lr": 0.1,
                    "seconds": i / 10, "val_miou": 0.4 if i % 50 == 0 else None, "val_small_miou": None})  # fmt: skip
    for i in (50, 70, 80, 90, 100):
        for c, name in enumerate(CAMVID.names):
            inside = 0.9 if c else None
            shares = {"share_consistent": c / 20, "precision_consistent": inside, "precision_noisy": 0.2}
            reliability.append({"iteration": i, "class": name, **shares, "predicted_share": 0.1, "pixels": 100 + c})
        for name in NAMES[:2]:
            maps = {key: rng.integers(0, 11, SIZE).astype(np.uint8) for key in ("pseudo_mask", "prediction")}
            maps["consistent"] = maps["pseudo_mask"] == maps["prediction"]
            write_npz(folder / "regions" / f"{i:06d}" / f"{name}.npz", **maps)
    names = CAMVID.names if variant == "ours" else ["all"]
    weights = [
        {"iteration": i, "class": name, "weight": 0.05 * (c + 1) if i > 60 else None}
        for i in (50, 70, 80)
        for c, name in enumerate(names)
    ]
    files.write_csv(folder / "region_weights.csv", weights)
    files.write_csv(folder / "log.csv", log)
    files.write_csv(folder / "reliability.csv", reliability)
    files.write_json(folder / "done.json", {"iteration": 100, "version": __version__})


def analysis(rng: np.random.Generator) -> dict[str, Any]:
    """What analysis.py writes; the last class is nowhere."""
    shares = np.array([10.0 ** -(c % 4) for c in range(10)] + [0])
    together = np.full((11, 11), 3)
    together[10] = together[:, 10] = 0
    areas = {name: rng.integers(10, 500, 6).tolist() for name in CAMVID.names[:10]} | {CAMVID.names[10]: []}
    return {
        "split": "train", "images": 5, "class_names": list(CAMVID.names), "small_ids": list(CAMVID.small_ids),
        "pixel_share": (shares / shares.sum()).tolist(), "image_share": [0.6] * 10 + [0.0],
        "cooccurrence": together.tolist(), "classes_per_image": [8, 9, 10, 10, 10], "object_areas": areas,
        "size": list(SIZE),
    }  # fmt: skip


def ablations(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows of ablations.json: two paths, three seeds, CLIP's masks without a seed, one failed score."""
    rows = [
        {
            "variant": "pseudo_masks",
            "path": "dual",
            "masker": "value_path",
            "seed": None,
            "miou": 0.3,
            "small_miou": 0.1,
        }
    ]
    for path in ("dual", "single_crf"):
        for variant in ("plain", "glv", "carb", "paper"):
            for seed in range(3):
                scores = {"miou": 0.4 + float(rng.random()) / 10, "small_miou": 0.1}
                rows.append({"variant": variant, "path": path, "masker": "value_path", "seed": seed, **scores})
    rows[-1]["small_miou"] = None
    return [row | {"split": "test", "images": 120} for row in rows]


# --- looking at a figure -----------------------------------------------------------------------------------------


@paper_style()  # as it is saved
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


def legend_of(figure: matplotlib.figure.Figure) -> list[str]:
    """The words of all legends."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]
