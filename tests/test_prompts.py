from __future__ import annotations

import copy

import pytest
import torch

from carblib import prompts
from carblib.base.errors import CarbError
from carblib.classes import ClassSet, class_set
from carblib.clip_files import clip
from carblib.clip_models import ClipModel
from carblib.prompts import IMAGENET_TEMPLATES, SCENE_TEMPLATES, TEMPLATES, embed_words, text_embeddings

THREE = ClassSet(
    "three",
    ("sky", "sign", "rider"),
    (("sky",), ("traffic sign", "road sign", "sign"), ("rider", "cyclist")),
    ((0, 0, 0),) * 3,
    (False, True, True),
)


def _reference(model: ClipModel, word: str) -> torch.Tensor:
    """Mean over templates of unit vectors, normalised again, with nothing but clip's own functions."""
    with torch.no_grad():
        vectors = [model.clip.encode_text(clip.tokenize([t.format(word)]))[0] for t in TEMPLATES]
    mean = sum(v / v.norm() for v in vectors) / len(vectors)
    return mean / mean.norm()


def test_templates_are_openais_eighty_and_five_for_scenes():
    open_clip = pytest.importorskip("open_clip")
    assert len(IMAGENET_TEMPLATES) == len(set(IMAGENET_TEMPLATES)) == 80 and len(SCENE_TEMPLATES) == 5
    assert set(IMAGENET_TEMPLATES) == {template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES}


def test_every_template_has_one_place_and_the_article_stays():
    assert len(TEMPLATES) == 85 and all(t.count("{}") == 1 and "*" not in t for t in TEMPLATES)
    assert "a origami {}." in TEMPLATES and "a photo of many {}." in TEMPLATES


def test_embeddings_equal_the_formula(random_clip):
    text = text_embeddings(random_clip, THREE)
    expected = torch.stack([_reference(random_clip, word) for word in ("sky", "traffic sign", "rider")])
    torch.testing.assert_close(text.vectors, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(text.mean_per_class, expected, rtol=0, atol=1e-6)
    assert text.class_of.tolist() == [0, 1, 2]
    assert text.vectors.dtype == torch.float32


def test_synonyms_keep_every_word_and_its_class(random_clip):
    text = text_embeddings(random_clip, THREE, synonyms=True)
    assert text.class_of.tolist() == [0, 1, 1, 1, 2, 2] and text.vectors.shape == (6, 128)
    torch.testing.assert_close(text.vectors.norm(dim=1), torch.ones(6))
    paper = text_embeddings(random_clip, THREE)
    torch.testing.assert_close(text.vectors[[0, 1, 4]], paper.vectors, rtol=0, atol=1e-6)
    mean = text.vectors[1:4].sum(0)
    torch.testing.assert_close(text.mean_per_class[1], mean / mean.norm(), rtol=0, atol=1e-6)
    torch.testing.assert_close(text.mean_per_class[0], text.vectors[0], rtol=0, atol=1e-6)


def test_all_class_sets_can_be_embedded(random_clip):
    for name in ("camvid", "cityscapes", "wilddash2"):
        classes = class_set(name)
        assert text_embeddings(random_clip, classes).vectors.shape == (len(classes), 128)


def test_a_word_with_a_brace_is_only_a_word(random_clip):
    assert embed_words(random_clip, ["{x} road {}"]).shape == (1, 128)


# --- cache -------------------------------------------------------------------------------------------------------


def test_cache_is_read_back_equal_without_encoding(random_clip, tmp_path, monkeypatch):
    first = embed_words(random_clip, ["sky", "road"], tmp_path / "text")
    assert len(list((tmp_path / "text").iterdir())) == 1
    monkeypatch.setattr(prompts, "_embed", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(embed_words(random_clip, ["sky", "road"], tmp_path / "text"), first)


def test_cache_is_kept_apart_by_weights_words_and_templates(random_clip, tmp_path, monkeypatch):
    other = ClipModel(random_clip.clip, "other", "another fingerprint")
    embed_words(random_clip, ["sky", "road"], tmp_path)
    embed_words(random_clip, ["road", "sky"], tmp_path)
    embed_words(other, ["sky", "road"], tmp_path)
    monkeypatch.setattr(prompts, "TEMPLATES", TEMPLATES[:3])
    embed_words(random_clip, ["sky", "road"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_damaged_cache_is_made_again(random_clip, tmp_path, capsys):
    right = embed_words(random_clip, ["sky"], tmp_path)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[good.index(right.numpy().tobytes())] ^= 1  # the last bit of the first number
    for damage in (good[:50], b"", flipped, torch.full((1, 128), float("nan")), torch.zeros(2, 128), {"a": 1}):
        file.write_bytes(damage) if isinstance(damage, bytes | bytearray) else torch.save(damage, file)
        assert torch.equal(embed_words(random_clip, ["sky"], tmp_path), right)
        assert file.read_bytes() == good
        assert f"{file}: damaged; the words" in capsys.readouterr().out


# --- words the model never saw -----------------------------------------------------------------------------------


def test_a_class_of_unknown_words_stops(random_clip):
    model = ClipModel(copy.deepcopy(random_clip.clip), "narrow", "x")
    model.clip.token_embedding.weight.data[clip.clip._tokenizer.encode("rider")] = 0
    with pytest.raises(CarbError, match="class 'rider': CLIP 'narrow' never saw 'rider'"):
        text_embeddings(model, THREE)
    # One known synonym is enough.
    assert text_embeddings(model, THREE, synonyms=True).vectors.isfinite().all()
