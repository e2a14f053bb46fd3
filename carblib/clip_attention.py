"""Dense features of CLIP's image tower: what is done in its last block decides how well patches speak for themselves.

CLIP trains only the class token of the last block, whose attention mixes the patches. Each strategy below is one
answer to that; the paper's is `value_path`. All other blocks run as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]
LastBlock = Callable[[nn.Module, Tensor, Grid], Tensor]

NEIGHBOURHOOD = 5.0  # patches: standard deviation of NACLIP's Gaussian window


def vit_features(visual: nn.Module, pixels: Tensor, strategy: str) -> Tensor:
    """Return the projected patch features of a CLIP ViT, not normalised.

    `pixels` (B, 3, H, W), normalised, H and W multiples of the patch; returns (B, D, H/patch, W/patch). Position
    embeddings are bicubically resized to the grid.
    """
    x, grid = tokens_before_last_block(visual, pixels)
    x = STRATEGIES[strategy](visual.transformer.resblocks[-1], x, grid)
    x = visual.ln_post(x) @ visual.proj
    return x.transpose(1, 2).unflatten(2, grid)


def tokens_before_last_block(visual: nn.Module, pixels: Tensor) -> tuple[Tensor, Grid]:
    """Return what enters a ViT's last block, (B, 1 + h·w, width) with the class token first, and the grid (h, w)."""
    x = visual.conv1(pixels)
    grid = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = visual.ln_pre(x + position_embeddings(visual, grid).to(x.dtype))
    x = x.transpose(0, 1)  # clip's blocks take (tokens, batch, width)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    return x.transpose(0, 1), grid


def resnet_features(visual: nn.Module, pixels: Tensor) -> Tensor:
    """Return the projected features of a CLIP ResNet, not normalised: (B, 3, H, W) -> (B, D, ~H/32, ~W/32).

    The value and output projections of the attention pool act as 1×1 convolutions (METHOD.md, 1).
    """
    x = visual.relu1(visual.bn1(visual.conv1(pixels)))
    x = visual.relu2(visual.bn2(visual.conv2(x)))
    x = visual.relu3(visual.bn3(visual.conv3(x)))
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.avgpool(x)))))
    pool = visual.attnpool
    return pool.c_proj(pool.v_proj(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def position_embeddings(visual: nn.Module, grid: Grid) -> Tensor:
    """Return a ViT's position embeddings for a patch grid (1 + h·w, width), bicubically resized (METHOD.md, 2).

    At the grid the model was trained on they are its own, unchanged.
    """
    table = visual.positional_embedding
    side = round((len(table) - 1) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[1:].T.unflatten(1, (side, side)).unsqueeze(0)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], patches[0].flatten(1).T])


# --- the last block: (block, tokens (B, 1 + h·w, width), grid) -> patches (B, h·w, width) ------------------------


def value_path(block: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Each patch attends to itself only; residuals and MLP stay: v = W_o(W_v(LN1 x)) + x, then v + MLP(LN2 v).

    The paper's masker (METHOD.md, 2), after MaskCLIP (Zhou et al., ECCV 2022).
    """
    x = x[:, 1:]
    return _with_residual(block, x, _own_values(block, x))


def no_residual(block: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """The value path alone, W_o(W_v(LN1 x)), without residual and MLP.

    ClearCLIP (Lan et al., ECCV 2024) finds that the residual carries the noise; here with the paper's attention.
    """
    return _own_values(block, x[:, 1:])


def query_query(block: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Query-query attention, softmax(q·qᵀ/√d), with residual and MLP: the first half of SCLIP's attention."""
    q, _, v = _heads(block, x)
    return _with_residual(block, x[:, 1:], _output(block, _attend(q, v)))


def key_key(block: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Key-key attention, softmax(k·kᵀ/√d), with residual and MLP: the second half of SCLIP's attention."""
    _, k, v = _heads(block, x)
    return _with_residual(block, x[:, 1:], _output(block, _attend(k, v)))


def sclip(block: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Correlative self-attention: (softmax(q·qᵀ/√d) + softmax(k·kᵀ/√d)) v, with residual and MLP.

    SCLIP (Wang et al., ECCV 2024, arXiv 2312.01597); the two softmaxes are summed, not averaged, as in its code.
    """
    q, k, v = _heads(block, x)
    return _with_residual(block, x[:, 1:], _output(block, _attend(q, v) + _attend(k, v)))


def clearclip(block: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Query-query attention without residual and MLP: ClearCLIP (Lan et al., ECCV 2024, arXiv 2407.12442)."""
    q, _, v = _heads(block, x)
    return _output(block, _attend(q, v))


def naclip(block: nn.Module, x: Tensor, grid: Grid) -> Tensor:
    """Key-key attention with a Gaussian bonus for neighbours, softmax(k·kᵀ/√d + G), without residual and MLP.

    G = exp(−distance²/2σ²) between patches, σ = 5 patches, and 0 to the class token. NACLIP (Hajimiri et al.,
    WACV 2025, arXiv 2404.08181), its "reduced" architecture.
    """
    _, k, v = _heads(block, x)
    bonus = F.pad(neighbourhood(grid, x.device), (1, 0))  # a column for the class token as key
    return _output(block, _attend(k, v, bonus.to(k.dtype)))


STRATEGIES: dict[str, LastBlock] = {
    "value_path": value_path,
    "no_residual": no_residual,
    "query_query": query_query,
    "key_key": key_key,
    "sclip": sclip,
    "clearclip": clearclip,
    "naclip": naclip,
}


def neighbourhood(grid: Grid, device: torch.device | str = "cpu", deviation: float = NEIGHBOURHOOD) -> Tensor:
    """Return exp(−distance²/2σ²) between all patches of a grid (h·w, h·w); σ = `deviation` in patches."""
    rows, columns = (torch.arange(length, device=device, dtype=torch.float32) for length in grid)
    # The Gaussian of a distance in the plane is the product of those along the axes.
    along = [torch.exp(-((line[:, None] - line) ** 2) / (2 * deviation**2)) for line in (rows, columns)]
    return torch.kron(*along)


def _own_values(block: nn.Module, x: Tensor) -> Tensor:
    """W_o(W_v(LN1 x)): what attention would give if every token attended to itself only."""
    attn, width = block.attn, x.shape[-1]
    bias = attn.in_proj_bias[2 * width :]
    return attn.out_proj(F.linear(block.ln_1(x), attn.in_proj_weight[2 * width :], bias))


def _heads(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all tokens, each (B, heads, tokens, width of a head)."""
    attn = block.attn
    packed = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = packed.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _attend(tokens: Tensor, v: Tensor, bonus: Tensor | None = None) -> Tensor:
    """Self-self attention softmax(t·tᵀ/√d + bonus) v of the patches to all tokens, fused: no matrix is kept."""
    return F.scaled_dot_product_attention(tokens[:, :, 1:], tokens, v, attn_mask=bonus)


def _output(block: nn.Module, heads: Tensor) -> Tensor:
    return block.attn.out_proj(heads.transpose(1, 2).flatten(2))


def _with_residual(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    x = x + attended
    return x + block.mlp(block.ln_2(x))
