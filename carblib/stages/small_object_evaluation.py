"""The evaluation of a run: its trained networks and CLIP's masks, measured on the same images."""

from __future__ import annotations

from carblib.data.readers import Split
from carblib.params import Params
from carblib.stages.evaluate import evaluate_folder, evaluation_split
from carblib.stages.predict import predict_checkpoint
from carblib.stages.pseudo_masks import export_masks


def evaluate_run(params: Params) -> Split:
    """Predict the test split with every training of a run, and measure predictions and CLIP's masks of the same images.

    Where the test split has no masks, the validation split is taken instead. CLIP's masks are those of the whole image
    ("pseudo_masks_global") and those put together from local views ("pseudo_masks_local"). Returns the split. Where it
    has no masks either, nothing is measured and predictions are also painted as pictures. Raises CarbError for a
    training that is not there.
    """
    split = evaluation_split(params)
    for variant in params.trainings:
        final = params.run_dir / "train" / variant / "final.pt"
        folder = predict_checkpoint(final, split, params, pictures=not split.has_masks)
        if split.has_masks:
            evaluate_folder(folder, split, params, variant, params.iterations, resize=True)
    if split.has_masks:
        plain = params.updated(crf=False, pseudo_masks="")  # CLIP's own masks, as it makes them
        for variant, local in (("pseudo_masks_global", False), ("pseudo_masks_local", True)):
            evaluate_folder(export_masks(plain, split.name, local=local), split, params, variant, resize=True)
    return split
