"""CLIP's image tower written out head by head and patch by patch, from raw weights: a reference for tests."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from carblib.clip_files import CLIP_MEAN, CLIP_STD


def _layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def plain_features(state, pixels, patch, layers, last, eps=1e-5, gelu=lambda x: x * (1.702 * x).sigmoid()):
    """Dense features of one image (3, H, W) from the raw state dict of a ViT, without clip's or carblib's modules."""
    s = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    width = s["proj"].shape[0]
    heads = width // 64
    h, w = pixels.shape[1] // patch, pixels.shape[2] // patch
    kernel = s["conv1.weight"].reshape(width, -1)
    cells = [
        kernel @ pixels[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].reshape(-1)
        for y in range(h)
        for x in range(w)
    ]
    table = s["positional_embedding"]
    side = math.isqrt(len(table) - 1)
    square = table[1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    places = F.interpolate(square, (h, w), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(-1, width)
    x = torch.stack([s["class_embedding"] + table[0], *(c + p for c, p in zip(cells, places, strict=True))])

    def norm(x, name):
        return _layer_norm(x, s[f"{name}.weight"], s[f"{name}.bias"], eps)

    def mlp(x, b):
        hidden = gelu(x @ s[f"{b}.mlp.c_fc.weight"].T + s[f"{b}.mlp.c_fc.bias"])
        return hidden @ s[f"{b}.mlp.c_proj.weight"].T + s[f"{b}.mlp.c_proj.bias"]

    def project(x, b):
        packed = norm(x, f"{b}.ln_1") @ s[f"{b}.attn.in_proj_weight"].T + s[f"{b}.attn.in_proj_bias"]
        return packed[:, :width], packed[:, width : 2 * width], packed[:, 2 * width :]

    def out(x, b):
        return x @ s[f"{b}.attn.out_proj.weight"].T + s[f"{b}.attn.out_proj.bias"]

    def attention(a, b, v, bonus=0.0):
        parts = []
        for head in range(heads):
            cut = slice(64 * head, 64 * head + 64)
            parts.append(torch.softmax(a[:, cut] @ b[:, cut].T / 8 + bonus, dim=-1) @ v[:, cut])
        return torch.cat(parts, dim=-1)

    x = norm(x, "ln_pre")
    for layer in range(layers - 1):
        b = f"transformer.resblocks.{layer}"
        q, k, v = project(x, b)
        x = x + out(attention(q, k, v), b)
        x = x + mlp(norm(x, f"{b}.ln_2"), b)
    b = f"transformer.resblocks.{layers - 1}"
    q, k, v = project(x, b)
    bonus = torch.zeros(h * w + 1, h * w + 1)
    for i in range(h * w):
        for j in range(h * w):
            distance = (i // w - j // w) ** 2 + (i % w - j % w) ** 2
            bonus[i + 1, j + 1] = math.exp(-distance / (2 * 5.0**2))
    attended = {
        "value_path": lambda: v,
        "no_residual": lambda: v,
        "query_query": lambda: attention(q, q, v),
        "key_key": lambda: attention(k, k, v),
        "sclip": lambda: attention(q, q, v) + attention(k, k, v),
        "clearclip": lambda: attention(q, q, v),
        "naclip": lambda: attention(k, k, v, bonus),
    }[last]()
    y = out(attended, b)
    if last not in ("no_residual", "clearclip", "naclip"):
        y = y + x
        y = y + mlp(norm(y, f"{b}.ln_2"), b)
    y = norm(y, "ln_post") @ s["proj"]
    y = y[1:]
    return (y / y.norm(dim=-1, keepdim=True)).T.reshape(-1, h, w)


def normalised(image: torch.Tensor, mean=CLIP_MEAN, std=CLIP_STD) -> torch.Tensor:
    return torch.stack([(image[c].float() / 255 - mean[c]) / std[c] for c in range(3)])
