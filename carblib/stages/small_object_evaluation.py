"""The evaluation of a run: its trained networks and CLIP's masks, measured on the same images."""

from __future__ import annotations

from carblib.base.errors import CarbError
from carblib.base.stamps import wait_for
from carblib.data.split import Split
from carblib.params import Params
from carblib.stages.evaluate import evaluate_folder, evaluation_split
from carblib.stages.predict import predict_checkpoint
from carblib.stages.pseudo_masks import export_clip_masks


def evaluate_run(params: Params) -> Split:
    """Predict the test split with every training of a run, and measure predictions and CLIP's masks of the same images.

    Where the test split has no masks, the validation split is taken instead. CLIP's masks are those of `clip_masks`.
    Returns the split. Where it has no masks either, nothing is measured and predictions are also painted as pictures.
    Raises CarbError, before anything is predicted, for a training that is not there.
    """
    split = evaluation_split(params)
    networks = {variant: params.run_dir / "train" / variant / "final.pt" for variant in params.trainings}
    missing = [variant for variant, final in networks.items() if not final.is_file()]
    if missing:
        train = params.command("train", "--variant", *missing)
        raise CarbError(f"{networks[missing[0]]}: no such file; train first: {train}, or notebook 03_train")
    for variant, final in networks.items():
        folder = wait_for(predict_checkpoint(final, split, params, pictures=not split.has_masks), split.names)
        if split.has_masks:
            evaluate_folder(folder, split, params, variant, params.iterations, resize=True)
    if split.has_masks:
        for variant, folder in export_clip_masks(params, split.name).items():
            evaluate_folder(folder, split, params, variant, resize=True)
    return split
