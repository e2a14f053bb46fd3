"""CLIP as the rest of carblib sees it: a frozen model that is asked for text embeddings (METHOD.md, 1).

Where its weights come from is in `clip_files`; what its image tower says of each patch in `clip_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carblib.base.errors import CarbError
from carblib.clip_files import CLIP_MEAN, CLIP_STD, clip, read_clip, use_gelu


class ClipModel(nn.Module):
    """A frozen CLIP in float32: image tower, text tower, and its own normalisation of pixels.

    `visual` is clip's VisionTransformer or ModifiedResNet; `mean`, `std` (3, 1, 1) are buffers for RGB in 0–1;
    `fingerprint` identifies the weights (SHA-256). It stays in evaluation mode whatever `train` is called with.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        fingerprint: str,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ):
        super().__init__()
        self.clip = model.float().eval().requires_grad_(False)
        self.name = name
        self.fingerprint = fingerprint
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ClipModel:
        """Keep evaluation mode: a frozen model has no other."""
        return super().train(False)

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return self.clip.visual

    @property
    def is_vit(self) -> bool:
        """True for a vision transformer, False for a ResNet."""
        return isinstance(self.visual, clip.model.VisionTransformer)

    @property
    def patch(self) -> int:
        """Pixels per cell of the feature grid, the same in both directions."""
        return self.visual.conv1.kernel_size[0] if self.is_vit else 32

    @property
    def resolution(self) -> int:
        """Side in pixels of the square images the model was trained on."""
        return self.visual.input_resolution

    @property
    def dim(self) -> int:
        """Dimension D of the space shared by images and texts."""
        return self.clip.text_projection.shape[1]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the unit-norm float32 embeddings (N, D) of N texts, on the model's device.

        Attention in the text tower is causal and the embedding is read at the end token, so whatever follows the
        longest text of a batch cannot change it and is left out. Raises CarbError for a text over the context length.
        """
        tokens = self._tokenize(texts)
        length = tokens.argmax(1) + 1  # the end token has the highest id
        device = self.mean.device
        vectors = torch.empty(len(tokens), self.dim, device=device)
        # Sorted by length, batches of short texts stay short.
        for rows in length.argsort().split(batch_size):
            part = tokens[rows, : int(length[rows].max())].to(device)
            with torch.autocast(device.type, enabled=False):
                vectors[rows.to(device)] = F.normalize(self.clip.encode_text(part).float(), dim=-1)
        return vectors

    def _tokenize(self, texts: Sequence[str]) -> Tensor:
        try:
            return clip.tokenize(list(texts), context_length=self.clip.context_length).long()
        except RuntimeError as error:
            raise CarbError(f"{error}; shorten the class words") from error

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of `text` that the model never saw in training.

        Such a word has a token whose embedding is all zeros. OpenAI's models have none; the embedded small CLIP knows
        the words of rendered scenes only.
        """
        return [word for word, trained in self._words(text) if not trained]

    def known_words(self, text: str) -> list[str]:
        """Return the words of `text` that the model saw in training; see `unknown_words`."""
        return [word for word, trained in self._words(text) if trained]

    def _words(self, text: str) -> list[tuple[str, bool]]:
        tokenizer, rows = clip.clip._tokenizer, self.clip.token_embedding.weight
        words = [word for word in tokenizer.pat.findall(text.lower()) if word[0].isalnum()]
        return [(word, bool(rows[tokenizer.encode(word)].any(dim=1).all())) for word in words]


def load_clip(name: str, folder: str = "", official: bool = False) -> ClipModel:
    """Load a CLIP model, verified, in float32, frozen.

    `name` is one of OpenAI's ("ViT-B/16", "RN50", …), "small" (the embedded CLIP of rendered scenes), a file with a
    state dict in OpenAI's format, or "open_clip:<architecture>/<tag or file>". OpenAI's are looked for in `folder`,
    then in ~/.cache/clip, then downloaded to the first of the two. `official` gives a ViT's image tower GELU and
    LayerNorm eps 1e-6, as the official CARB code has it (METHOD.md, 7.4); ResNets are the same there.

    Raises CarbError for weights that are missing, of another checksum, of another model, or not finite.
    """
    weights = read_clip(name, folder)
    model = ClipModel(weights.model, name, weights.fingerprint, weights.mean, weights.std)
    if official:
        for module in model.visual.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-6
        use_gelu(model.visual)
    return model
