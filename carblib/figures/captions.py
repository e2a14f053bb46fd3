"""Where a figure comes from: the data behind it, its caption and source, saved beside it (PNG, PDF and JSON record)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from carblib import __version__
from carblib.base.errors import CarbError
from carblib.base.files import write_bytes, write_json
from carblib.base.stamps import NAME, read_stamp
from carblib.data.readers import open_split
from carblib.data.split import Split
from carblib.figures.style import FAINT, PDF_DPI, PNG_DPI, rendered
from carblib.params import Params
from carblib.results.saved import Missing, RunResults
from carblib.results.words import DATA_NAMES, clip_name, data_name, plural


@dataclass(frozen=True)
class FigureRecord:
    """What a figure shows and where it comes from; written beside it as JSON. `seed` holds several where they differ.

    `caption` says what is seen, `source` what it was made from, `alt` is the alternative text. `images` counts those
    shown or measured, all of the split or some. `made_from`: digests of what it was drawn from.
    """

    run: str
    data: str
    split: str
    seed: int | tuple[int, ...]
    checkpoint: str
    images: int
    version: str
    caption: str
    source: str
    alt: str
    made_from: dict[str, str] = field(default_factory=dict)


Drawn = tuple[Figure, FigureRecord]


def figure_record(
    params: Params,
    caption: str,
    alt: str,
    split: str = "",
    images: int = 0,
    checkpoint: str = "none",
    *,
    chosen_of: int = 0,
    batches: str = "",
    seeds: Sequence[int] = (),
) -> FigureRecord:
    """Put beside a caption (one or more sentences) its source: data, split, images, seed, checkpoint, version.

    `checkpoint` says which trained networks a figure rests on, "none" for CLIP's masks and for the data alone.
    `chosen_of`: of how many images of the split `images` were chosen by rule. `batches`: the split whose training
    batches are shown as well. `seeds` default to the parameters' one.
    """
    data, seeds = data_name(params), tuple(seeds) or (params.seed,)
    number = f"{images} of {chosen_of} images, chosen by rule" if chosen_of > images else plural(images, "image")
    source = f"Data: {data}" + (f", split {split}" if split else "") + (f" ({number})" if images else "")
    parts = [source + (f", and training batches of split {batches}" if batches else "")]
    if params.clip == "small":
        parts.append(f"CLIP: {clip_name(params)}")
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    several = "s" if "," in checkpoint.removesuffix(", over training") else ""
    parts.append("no trained network" if checkpoint == "none" else f"checkpoint{several} {checkpoint}")
    source = f"{'; '.join(parts)}; carblib {__version__}."
    splits = " and ".join(dict.fromkeys(name for name in (batches, split) if name))
    seed = seeds[0] if len(seeds) == 1 else seeds
    words = caption.strip(), source, alt.strip()
    return FigureRecord(params.run, data, splits, seed, checkpoint, images, __version__, *words)


# --- the data behind a figure --------------------------------------------------------------------------------------


def open_data(results: RunResults, split: str) -> Split:
    """Open a split of the run's dataset. Raises Missing where it is not there: results may lie far from their data."""
    root = results.params.data_root
    if not root.is_dir():
        raise Missing(f"dataset not found at {root}; set root in {results.folder / 'params.yaml'}, or copy the data")
    try:
        return open_split(results.params, split)
    except CarbError as error:
        raise Missing(f"dataset not found at {root}: {str(error).removeprefix(f'{root}: ')}") from error


def image_index(split: Split, name: str) -> int:
    """Return the place of an image in its split. Raises Missing where the data no longer holds it."""
    if name not in split.names:
        raise Missing(
            f"image {name} is no longer in split {split.name} of {split.image_paths[0].parent}; evaluate again"
        )
    return split.names.index(name)


def images_of(results: RunResults, split: str) -> int:
    """Return how many images a split has, by the dataset, or by the saved results where it is not there; else 0."""
    try:
        return len(open_data(results, split))
    except Missing:
        pass
    if results.analysis and results.analysis["split"] == split:
        return int(results.analysis["images"])
    if split == results.params.val_split and results.validation:
        return int(next(iter(results.validation.values()))["images"])
    return 0


def taught_images(results: RunResults, variant: str) -> int:
    """Return how many images a training learnt from, as its stamp tells."""
    stamp = read_stamp(results.folder / "train" / variant / NAME)
    return len(stamp.items) if stamp else images_of(results, results.params.train_split)


# --- files ---------------------------------------------------------------------------------------------------------


def save_figure(figure: Figure, path_stem: str | Path, record: FigureRecord) -> list[Path]:
    """Write <stem>.png (200 dpi), <stem>.pdf (vectors, embedded fonts) and <stem>.json (the record); return the paths.

    A figure of rendered scenes gets a footnote that says so, for the day the picture is seen without its caption.
    """
    stem = Path(path_stem)
    if record.data == DATA_NAMES["scenes"]:
        _footnote(figure, "rendered scenes" + (f", {record.split}" if record.split else ""))
    about = {"Title": stem.name, "Description": record.alt}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf", "json")]
    write_bytes(paths[0], rendered(figure, "png", PNG_DPI, about))
    # No date, so that the same results give the same file.
    write_bytes(paths[1], rendered(figure, "pdf", PDF_DPI, {"Title": stem.name, "CreationDate": None}))
    write_json(paths[2], dataclasses.asdict(record))
    return paths


def _footnote(figure: Figure, text: str) -> None:
    if any(artist.get_gid() == "footnote" for artist in figure.texts):
        return
    width, height = figure.get_size_inches()
    strip = 0.16  # inches added below, so that the drawing keeps its size
    figure.set_size_inches(width, height + strip)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, strip / (height + strip), 1, height / (height + strip)))
    figure.text(
        1 - 0.04 / width,
        0.035 / (height + strip),
        text,
        ha="right",
        va="bottom",
        fontsize=7,
        color=FAINT,
        gid="footnote",
    ).set_in_layout(False)
