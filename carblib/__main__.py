"""The one command: `carb <sub-command>`, which is `python -m carblib <sub-command>`.

What a sub-command needs is imported when it runs: torch takes seconds, and help must not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from carblib.base.errors import CarbError
from carblib.base.processes import is_first
from carblib.run.command_line import (
    OVERRIDES,
    PARAMS_OF_RUN,
    PATH,
    RUN,
    Commands,
    at_least_one,
    example,
    named_run,
    positive,
    renew_option,
    run_and_exit,
    split_option,
    takes_data,
    takes_params,
    takes_run,
)
from carblib.variants import TRAINED

if TYPE_CHECKING:
    from carblib.params import Params


# --- a whole run -----------------------------------------------------------------------------------------------------


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A run is a file of params/; -p KEY VALUE changes one of its keys. carb COMMAND --help has examples.",
)
def carb() -> None:
    """Segment driving scenes from image-level labels: CLIP's pseudo-masks, global-local views, region balancing."""


@carb.command(epilog=example("carb demo", "carb demo -p run quick -p iterations 60 -p warmup 30"))
@OVERRIDES
def demo(overrides: Sequence[tuple[str, str]]) -> int:
    """The whole demonstration, on rendered scenes.

    The same as carb batch params/demo.yaml; nothing is downloaded.
    """
    from carblib.run.batch import run_batch

    return run_batch(["params/demo.yaml"], dict(overrides))


@carb.command(
    epilog=example(
        "carb batch params/demo.yaml params/camvid_small.yaml", "carb batch params/demo.yaml --notebooks 01 02"
    )
)
@click.argument("params_files", nargs=-1, required=True)
@OVERRIDES
@click.option("--notebooks", multiple=True, metavar="NAME ...", help="Only these, as in 01 02.")
@click.option("--force", is_flag=True, help="Run also what is finished.")
def batch(
    params_files: Sequence[str], overrides: Sequence[tuple[str, str]], notebooks: Sequence[str], force: bool
) -> int:
    """All notebooks, figures and the report, for one or more runs.

    What is finished is skipped, what was interrupted goes on. Ends with 1 where a run failed, with 130 after Ctrl-C.
    """
    from carblib.run.batch import run_batch

    return run_batch(params_files, dict(overrides), notebooks, force)


@carb.command(epilog=example("carb params", "carb params params/cityscapes.yaml"))
@click.argument("params_file", required=False)
def params(params_file: str | None) -> None:
    """Every parameter with default, type and meaning.

    With PARAMS_FILE: only those that the file sets otherwise.
    """
    from carblib.params import load_params
    from carblib.run.list_params import list_params

    click.echo(list_params(load_params(params_file) if params_file else None))


# --- data and pseudo-masks -------------------------------------------------------------------------------------------


@carb.command(epilog=example("carb scenes data/more --split train --count 500 --seed 7"))
@click.argument("root")
@click.option("--split", default="train", show_default=True, help="train, val, test or a name of your own.")
@click.option("--count", type=at_least_one, default=240, show_default=True, help="Number of scenes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the set.")
@click.option("--size", type=at_least_one, nargs=2, default=(256, 512), metavar="H W", help="Pixels; default: 256 512.")
@click.option("--processes", type=at_least_one, help="Worker processes; default: one per core.")
def scenes(root: str, split: str, count: int, seed: int, size: tuple[int, int], processes: int | None) -> None:
    """Render driving scenes with exact masks into a folder.

    Commands that read a run's rendered scenes make them by themselves; this is for sets of your own.
    """
    from carblib.scenes.folders import write_scenes

    folder = write_scenes(root, split, count, seed, size, processes)
    print(f"{count} scenes in {folder}")


@carb.command(epilog=example("carb analyse params/demo.yaml"))
@takes_data
@split_option("the train split")
def analyse(params: Params, split_name: str | None) -> None:
    """How often classes occur, together and at what sizes.

    Reads the masks of a split and writes runs/<run>/analysis.json, from which figures are drawn.
    """
    from carblib.data.audit import tell
    from carblib.data.readers import open_split
    from carblib.stages.dataset_analysis import analyse_split, analysis_path

    found = analyse_split(open_split(params, split_name or params.train_split), params)
    shares = zip(found["class_names"], found["image_share"], found["pixel_share"], strict=True)
    for name, of_images, of_pixels in shares:
        print(f"{name:16} in {100 * of_images:5.1f} % of the images, {100 * of_pixels:4.1f} % of the pixels")
    tell(found["odd"])
    print(analysis_path(params))


@carb.command(epilog=example("carb status params/demo.yaml"))
@takes_params
def status(params: Params) -> None:
    """What is up to date, what is stale and why, what is missing."""
    from carblib.run.status import status as rows_of

    for row in rows_of(params):
        why = f": {row.why}" if row.why else ""
        print(f"{row.what:32} {row.state}{why}" + (f"\n{'':32} → {row.command}" if row.command else ""))


@carb.command(epilog=example("carb labels params/demo.yaml", "carb labels params/folder.yaml --blank"))
@takes_data
@split_option("the train split")
@click.option("--from-npy", type=PATH, help="The official code's pickled labels of this split.")
@click.option("--blank", is_flag=True, help="Write 0 for every image and class, to be filled in.")
@click.option("--add", is_flag=True, help="Append the images that your file lacks; its lines stay as they are.")
def labels(params: Params, split_name: str | None, from_npy: Path | None, blank: bool, add: bool) -> None:
    """Image-level labels of a split, as CSV.

    Derived from its masks, or converted from the official .npy, or blank.
    """
    from carblib.data import labels as image_labels
    from carblib.data.audit import audit, tell
    from carblib.data.checks import check_split
    from carblib.data.readers import open_split

    if blank + bool(from_npy) + add > 1:
        raise CarbError("--blank, --from-npy, --add: give one of them")
    split = open_split(params, split_name or params.train_split)
    if blank:
        path = image_labels.write_given(params, split, image_labels.blank_labels(split))
        print(f"{path}: {len(split)} images; write 1 for each class an image holds")
        return
    if add:
        path, count = image_labels.add_labels(params, split)
        print(f"{path}: {count} images added")
    elif from_npy:
        converted = image_labels.convert_official(from_npy, split.class_set, split.names)
        path = image_labels.write_given(params, split, converted)
    else:
        path = image_labels.ensure_labels(params, split)
    append = params.command("labels", "--split", split.name, "--add")
    rows = image_labels.read_labels(path, split.class_set, split.names, append, split.left_out)
    print(f"{path}: {len(rows)} images, on average {rows.sum(1).mean():.1f} of {rows.shape[1]} classes")
    check_split(params, split, masks=False)
    tell(audit(params, split, rows))


@carb.command(
    epilog=example("carb masks params/demo.yaml --split val", "carb masks params/demo.yaml --crf --processes 4")
)
@takes_data
@split_option("the train split")
@click.option("--crf", is_flag=True, help="Refine the masks by a dense CRF (as crf: true).")
@click.option("--local", is_flag=True, help="Masks put together from local views, to be looked at.")
@click.option("--processes", type=at_least_one, default=1, show_default=True, help="Processes that share the work.")
@renew_option
def masks(params: Params, split_name: str | None, crf: bool, local: bool, processes: int, renew: bool) -> None:
    """CLIP's pseudo-masks of a split, on disk.

    Goes on where it was stopped. `carb train` makes those it needs by itself.
    """
    from carblib.stages.pseudo_masks import export_masks
    from carblib.stages.tools import check_tools

    if crf and local:
        raise CarbError("--crf, --local: masks from local views are for looking at, not refined; give one of the two")
    trained_from = params.updated(path="single", crf=crf or params.crf)
    check_tools(trained_from.updated(crf=trained_from.crf and not local), trains=False)
    folder = export_masks(trained_from, split_name or params.train_split, processes, local, renew)
    if is_first():
        print(folder)
    if trained_from != params and not local and is_first():
        print(f"a training reads them with: {trained_from.command('train')}")


@carb.command(epilog=example("carb quality params/demo.yaml --images 12"))
@takes_data
@split_option("the val split")
@click.option("--images", type=at_least_one, default=12, show_default=True, help="Images to measure on, evenly spaced.")
def quality(params: Params, split_name: str | None, images: int) -> None:
    """Ways of making pseudo-masks, measured side by side.

    Writes runs/<run>/maskers.json, from which a figure and a table are made.
    """
    from carblib.data.readers import open_split
    from carblib.results.words import percent
    from carblib.stages.mask_quality import compare_maskers, maskers_path

    for row in compare_maskers(params, open_split(params, split_name or params.val_split), images):
        scores = f"mIoU {percent(row['miou']):>4}  small {percent(row['small_miou']):>4}"
        print(f"{row['masker']:28} {scores}  {row['seconds']:.2f} s per image")
    print(maskers_path(params))


# --- training and what comes of it -----------------------------------------------------------------------------------


@carb.command(
    epilog=example("carb train params/demo.yaml --variant plain paper ours", "carb train params/demo.yaml -p devices 2")
)
@takes_data
@click.option(
    "--variant",
    "variants",
    multiple=True,
    default=["paper"],
    type=click.Choice(TRAINED),
    metavar="NAME ...",
    help=f"One or several of {', '.join(TRAINED)}; default: paper.",
)
@renew_option
def train(params: Params, variants: Sequence[str], renew: bool) -> None:
    """Train one or several variants of a run.

    Makes the pseudo-masks the trainings read, if there are none yet. Resumes where it was stopped; Ctrl-C saves first.
    """
    from carblib.stages.pseudo_masks import ensure_masks
    from carblib.stages.tools import check_tools
    from carblib.training.loop import train_variants
    from carblib.training.state import discard_stale, is_done

    for variant in variants if renew else ():
        discard_stale(params.run_dir / "train" / variant, params.variant(variant))
    if not all(is_done(params.run_dir / "train" / name, params.variant(name)) for name in variants):
        check_tools(params)
    ensure_masks(params, variants, renew)
    folders = train_variants(params, variants)
    if is_first():
        print(f"trained networks and logs: {', '.join(map(str, folders))}")


@carb.command(
    epilog=example(
        "carb predict params/demo.yaml --checkpoint runs/demo/train/paper/final.pt",
        "carb predict params/demo.yaml --checkpoint runs/demo/train/paper/final.pt --images ~/dashcam",
    )
)
@takes_run
@click.option("--checkpoint", type=PATH, required=True, help="A training's final.pt or checkpoint.pt.")
@split_option("the test split")
@click.option("--images", type=PATH, help="A folder of pictures, and its subfolders, in place of a split.")
@click.option("--out", type=PATH, help="Default: runs/<run>/predictions/<training>/<split>, or …/pictures/<folder>.")
@click.option("--index-only", is_flag=True, help="No colour pictures and overlays.")
@click.option("--submission", is_flag=True, help="Also write labelIds for Cityscapes' server.")
def predict(
    params: Params,
    checkpoint: Path,
    split_name: str | None,
    images: Path | None,
    out: Path | None,
    index_only: bool,
    submission: bool,
) -> None:
    """Masks of a split or of any pictures, by a trained network."""
    from carblib.base.stamps import wait_for
    from carblib.data.readers import open_split
    from carblib.scenes.folders import ensure_scenes
    from carblib.stages.predict import open_images, predict_checkpoint, write_submission

    if images and split_name:
        raise CarbError("--split, --images: give one of the two")
    if images:
        split = open_images(images, params, out)
    else:
        ensure_scenes(params)
        split = open_split(params, split_name or params.test_split)
    folder = predict_checkpoint(checkpoint, split, params, out, not index_only)
    if is_first():
        print(folder)
    if submission and is_first():
        wait_for(folder, split.names)
        print(write_submission(folder, split, folder.with_name(f"{folder.name}_labelIds")))


@carb.command(epilog=example("carb evaluate params/demo.yaml --folder runs/demo/predictions/paper/test"))
@takes_data
@click.option("--folder", type=PATH, required=True, help="Predictions: <name>.png of train ids per image.")
@split_option("the test split")
@click.option("--variant", metavar="NAME", help="Name of the result; default: the training's or folder's.")
@click.option("--resize", is_flag=True, help="Bring predictions of another size to the truth's.")
@click.option("--label-ids", is_flag=True, help="A Cityscapes submission: labelIds in <name>*.png.")
def evaluate(
    params: Params, folder: Path, split_name: str | None, variant: str | None, resize: bool, label_ids: bool
) -> None:
    """Measure anyone's predictions against a split's masks."""
    from carblib.data.readers import open_split
    from carblib.results.words import percent
    from carblib.stages.evaluate import evaluate_folder, evaluation_path, result_name

    split = open_split(params, split_name or params.test_split)
    variant = result_name(folder, params, split.name, variant)
    result = evaluate_folder(folder, split, params, variant, resize=resize, label_ids=label_ids)
    scores = f"mIoU {percent(result['miou'])} %, small {percent(result['small_miou'])} %"
    if is_first():
        print(f"{variant} on {split.name}, {result['images']} images: {scores}")
        print(evaluation_path(params, variant, split.name))


@carb.command(epilog=example("carb ablate params/demo.yaml", "carb ablate params/demo.yaml -p ablation_seeds '[0]'"))
@takes_data
def ablate(params: Params) -> None:
    """The grid of variants, paths, maskers and seeds.

    What it spans are the keys ablation_…; finished cells are skipped.
    """
    from carblib.stages.ablations import run_ablations
    from carblib.stages.tools import check_tools

    check_tools(params, ablates=True)
    run_ablations(params)
    print(f"{params.run_dir / 'ablations.json'}: one row per cell")


# --- showing ---------------------------------------------------------------------------------------------------------


@carb.command(epilog=example("carb figures runs/demo", "carb figures runs/demo --only iou_per_class region_weights"))
@RUN
@PARAMS_OF_RUN
@OVERRIDES
@click.option("--out", type=PATH, help="Folder for them; default: figures/<run>.")
@click.option("--only", multiple=True, metavar="NAME ...", help="Only these figures, no tables.")
@click.option("--tables", "only_tables", is_flag=True, help="Only the tables.")
def figures(
    run_dir: Path,
    params_file: str | None,
    overrides: Sequence[tuple[str, str]],
    out: Path | None,
    only: Sequence[str],
    only_tables: bool,
) -> int:
    """All figures and tables of a run, again from its results.

    RUN is a run's folder or parameters file. No model runs; what is not made is named with what it needs. Statistics
    of an object-centric data set, contrast.json in the run's folder, are shown beside. Ends with 1 where one failed.
    """
    from carblib.figures.draw import draw_all
    from carblib.results.saved import load_results
    from carblib.results.tables import write_tables

    if only and only_tables:
        raise CarbError("--only, --tables: give one of the two")
    results = load_results(*named_run(run_dir, params_file, overrides))
    out = out or results.figures_dir
    outcomes = [] if only_tables else draw_all(results, out, only)
    for outcome in outcomes:
        state = outcome.path or f"{'FAILED' if outcome.damaged else 'not made'}: {outcome.reason}"
        print(f"{outcome.name:24} {state}")
    if not only:
        written = write_tables(results, out)
        for path in written:
            print(f"{path.stem:24} {path}")
        if not written:
            print("no table yet: notebooks 02_pseudo_masks and 04_small_object_evaluation make the results")
    return 1 if any(outcome.damaged for outcome in outcomes) else 0


@carb.command(
    epilog=example(
        "carb explore params/demo.yaml", "carb explore params/demo.yaml --checkpoint runs/other/train/paper/final.pt"
    )
)
@click.argument("params_file")
@OVERRIDES
@click.option("--checkpoint", "checkpoints", multiple=True, metavar="FILE ...", help="Networks of other runs as well.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: a free one.")
@click.option("--no-browser", is_flag=True, help="Only print the page's address.")
def explore(
    params_file: str,
    overrides: Sequence[tuple[str, str]],
    checkpoints: Sequence[str],
    port: int | None,
    no_browser: bool,
) -> int:
    """The explorer as a page of its own, on this machine only.

    Images, CLIP's maps, masks and networks side by side; the same as the notebook 00_explore. Needs the package voila.
    """
    from carblib.run.explore_page import serve_explorer

    return serve_explorer(params_file, dict(overrides), checkpoints, port, not no_browser)


@carb.command(epilog=example("carb report runs/demo runs/camvid_small", "carb report params/demo.yaml"))
@click.argument("runs", nargs=-1, required=True, type=PATH)
@PARAMS_OF_RUN
@OVERRIDES
def report(runs: Sequence[Path], params_file: str | None, overrides: Sequence[tuple[str, str]]) -> None:
    """The page of each run, and the index over all runs.

    RUNS are folders of runs or their parameters files; several stand side by side in the index.
    """
    from carblib.run.index import write_index
    from carblib.run.report import write_report

    written, failed = [], []
    for run_dir, params in [named_run(run, params_file, overrides) for run in runs]:
        try:
            print(write_report(run_dir, params))
            written.append(run_dir.resolve())
        except CarbError as error:  # the others have their pages all the same
            failed.append(str(error))
    for runs_dir in dict.fromkeys(run_dir.parent for run_dir in written):
        print(write_index(runs_dir, [run_dir.name for run_dir in written]))
    if failed:
        raise CarbError("; ".join(failed))


@carb.command(
    epilog=example(
        "carb fleet params/folder.yaml -p gate none --shards 'frames/*.tar' --out masks --processes 8",
        "carb fleet params/demo.yaml --checkpoint runs/demo/train/paper/final.pt --shards ~/dashcam --out found",
    )
)
@takes_params
@click.option("--shards", required=True, metavar="TARS", help="A folder of pictures, or a pattern of tars, s3://… too.")
@click.option("--out", required=True, help="Folder of the results, for tars also in object storage.")
@click.option("--checkpoint", type=PATH, help="A training's final.pt predicts; without it CLIP makes pseudo-masks.")
@click.option("--processes", type=at_least_one, default=1, show_default=True, help="Processes on this machine.")
@click.option("--scheduler", default="", metavar="ADDRESS", help="Dask scheduler whose workers do the work instead.")
def fleet(params: Params, shards: str, out: str, checkpoint: Path | None, processes: int, scheduler: str) -> None:
    """Label or predict millions of frames, shard by shard.

    The same command does what is missing; workers may die. Needs the package distributed for more than one process.
    """
    from carblib.run.fleet import run

    done, left_out = run(params, shards, out, checkpoint, processes, scheduler)
    for why in left_out:
        print(f"left out: {why}")
    print(f"{out}: {done} frames done now, {len(left_out)} left out")


@carb.command(epilog=example("carb bench --quick", "carb bench --device cuda --precision bf16-mixed --out bench.json"))
@click.option("--quick", is_flag=True, help="Small sizes, a minute on a laptop, and no growth.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", default="32-true", show_default=True, type=click.Choice(["32-true", "bf16-mixed"]))
@click.option("--only", multiple=True, metavar="NAME ...", help="Only stages that begin so, or growth.")
@click.option(
    "--out", type=PATH, help="JSON, a table and a figure beside it; default: runs/bench.json, none with --only."
)
def bench(quick: bool, device: str, precision: str, only: Sequence[str], out: Path | None) -> None:
    """What stages cost beside the official formulation.

    Both in turn, in one process, after a check that they give the same: the ratio is what counts. Precision is that of
    ours; the official formulation is float32, as it was shipped, and the check is made in float32 alone.
    """
    from carblib.base.device import torch_device
    from carblib.params import project_root
    from carblib.run.bench.measure import run

    out = out or (None if only else project_root() / "runs" / "bench.json")
    for path in run(out, torch_device(device), quick, precision, only):
        print(path)


@carb.command(epilog=example("carb publish runs/demo"))
@RUN
def publish(run_dir: Path) -> None:
    """Put a run's notebooks and figures where git keeps them.

    Its executed notebooks go to notebooks/, outputs included, its figures and tables to figures/published. Nothing else
    writes there.
    """
    from carblib.run import publish as publishing

    written, left = publishing.publish(*named_run(run_dir))
    for path in written:
        print(path)
    if left:
        print(f"left as they were, since this run has not made them: {', '.join(left)}")


# --- weights ---------------------------------------------------------------------------------------------------------


@carb.group(no_args_is_help=False)
def checkpoints() -> None:
    """The official code's checkpoints: import, export."""


@checkpoints.command("import", epilog=example("carb checkpoints import official.pth params/cityscapes.yaml"))
@click.argument("file", type=PATH)
@takes_params
@click.option("--output", type=PATH, help="Default: runs/<run>/train/official/final.pt.")
def import_checkpoint(params: Params, file: Path, output: Path | None) -> None:
    """Official checkpoint -> final.pt of ours; lists every key."""
    from carblib.training.official import import_file

    output = output or params.run_dir / "train" / "official" / "final.pt"
    import_file(file, params, output)
    print(f"{output}: written")


@checkpoints.command("export", epilog=example("carb checkpoints export runs/demo/train/paper/final.pt official.pth"))
@click.argument("file", type=PATH)
@click.argument("output", type=PATH)
def export_checkpoint(file: Path, output: Path) -> None:
    """final.pt or checkpoint.pt of ours -> official form."""
    from carblib.training.official import export_file

    export_file(file, output)
    print(f"{output}: written")


@carb.command(
    epilog=example(
        "carb pretrain clip --output /tmp/clip.pt", "carb pretrain backbone --output /tmp/backbone.safetensors"
    )
)
@click.argument("model", type=click.Choice(["clip", "backbone"]))
@click.option(
    "--minutes",
    type=positive,
    help="Training time after rendering; default: 25, 18 for the backbone.",
)
@click.option("--scenes", type=at_least_one, help="Rendered training scenes; default: 2000, 1500 for the backbone.")
@click.option("--batch-size", type=at_least_one, help="Images per step; default: 192, 128 for the backbone.")
@click.option("--lr", type=positive, help="Learning rate; default: 0.003, 0.004 for the backbone.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of scenes and weights.")
@click.option("--output", type=PATH, help="Default: the embedded file.")
def pretrain(
    model: str,
    minutes: float | None,
    scenes: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int,
    output: Path | None,
) -> None:
    """Make the small embedded models again: clip, backbone.

    clip learns from rendered image-caption pairs, backbone by classifying rendered crops.
    """
    from carblib.clip_files import SMALL_CLIP
    from carblib.network import SMALL_BACKBONE
    from carblib.scenes import pretrain_backbone, pretrain_clip

    if model == "clip":
        settings = minutes or 25, scenes or 2000, batch_size or 192, lr or 3e-3
        pretrain_clip.train_clip(*settings, seed, output or SMALL_CLIP)
    else:
        settings = minutes or 18, scenes or 1500, batch_size or 128, lr or 4e-3
        pretrain_backbone.pretrain(*settings, seed, output or SMALL_BACKBONE)


def main() -> NoReturn:
    """Run the command line of this process and exit: the console script `carb`."""
    run_and_exit(carb, sys.argv[1:])


if __name__ == "__main__":
    main()
