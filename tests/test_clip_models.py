from __future__ import annotations

import copy
import hashlib
import importlib
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_clip import tiny_clip

from carblib.base.errors import CarbError
from carblib.clip_files import CLIP_MEAN, SMALL_CLIP, build_clip, clip, clip_digest
from carblib.clip_models import ClipModel, load_clip


def _offer(monkeypatch, file: Path, name: str = "ViT-B/16") -> str:
    """Make clip believe that `file` is OpenAI's checkpoint `name`; returns its checksum."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    place = file.parent / digest / file.name
    place.parent.mkdir(exist_ok=True)
    shutil.copy(file, place)
    monkeypatch.setitem(clip.clip._MODELS, name, place.as_uri())
    return digest


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# --- loading -----------------------------------------------------------------------------------------------------


def test_file_is_loaded_exactly_frozen_and_in_float32(random_clip_file, random_clip):
    model = random_clip
    stored = torch.load(random_clip_file, weights_only=True)
    loaded = model.clip.state_dict()
    # Exactly: building goes through float16, which must not round float32 weights.
    assert stored.keys() == loaded.keys() and all(torch.equal(stored[key], loaded[key]) for key in stored)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in model.parameters())
    assert (model.patch, model.resolution, model.dim, model.is_vit) == (8, 64, 128, True)
    assert model.fingerprint == hashlib.sha256(random_clip_file.read_bytes()).hexdigest()
    assert torch.allclose(model.mean.flatten(), torch.tensor(CLIP_MEAN))
    assert not model.train().training and not model.visual.training


def test_resnet_is_loaded(random_resnet_clip):
    assert (random_resnet_clip.is_vit, random_resnet_clip.patch, random_resnet_clip.resolution) == (False, 32, 64)


def test_half_precision_weights_are_widened(tmp_path):
    state = {key: value.half() for key, value in tiny_clip(1).state_dict().items()}
    state["input_resolution"] = torch.tensor(64)  # OpenAI's archives hold three plain numbers too
    torch.save(state, tmp_path / "half.pt")
    model = load_clip(str(tmp_path / "half.pt"))
    assert model.clip.visual.proj.dtype == torch.float32
    assert torch.equal(model.clip.visual.proj, state["visual.proj"].float())


def test_official_switch_changes_the_image_tower_only(random_clip_file, random_clip):
    model = load_clip(str(random_clip_file), official=True)
    norms = [m for m in model.visual.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert norms and all(m.eps == 1e-6 for m in norms)
    assert all(isinstance(block.mlp.gelu, torch.nn.GELU) for block in model.visual.transformer.resblocks)
    assert isinstance(model.clip.transformer.resblocks[0].mlp.gelu, clip.model.QuickGELU)
    assert model.clip.ln_final.eps == 1e-5
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(model.visual(pixels), random_clip.visual(pixels), atol=1e-4)


@pytest.fixture
def fresh():
    """Let clip be imported afresh, as users see it; the modules are put back so that classes stay the same objects."""
    kept = [name for name in sys.modules if name.split(".")[0] in ("clip", "pkg_resources")]
    kept = {name: sys.modules.pop(name) for name in [*kept, "carblib.clip_files"]}
    yield
    sys.modules.update(kept)


def test_import_of_clip_is_silent(fresh):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module("carblib.clip_files")


def test_setuptools_without_pkg_resources_is_met_with_the_command(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "pkg_resources", None)  # importing it raises ModuleNotFoundError
    with pytest.raises(CarbError, match="pip install 'setuptools<82'"):
        importlib.import_module("carblib.clip_files")
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(ModuleNotFoundError, match="clip"):
        importlib.import_module("carblib.clip_files")


# --- what must stop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual.transformer.resblocks.1.mlp.c_fc.bias"), "Missing key"),
        (lambda s: s.pop("text_projection"), "no 'text_projection'"),
        (lambda s: s.update({"visual.adapter": torch.zeros(1)}), "Unexpected key"),
        (lambda s: s.update({"visual.proj": torch.zeros(128, 64)}), "size mismatch"),
        (lambda s: s["ln_final.bias"].fill_(float("nan")), "not finite in 'ln_final.bias'"),
        (lambda s: s["visual.proj"].view(-1)[7].fill_(float("inf")), "not finite in 'visual.proj'"),
        (lambda s: s.clear(), "not the weights of a CLIP model"),
        (lambda s: s.update({"epoch": 3}), "not a state dict"),
    ],
)
def test_weights_of_another_model_stop(tmp_path, change, message):
    state = {key: value.clone() for key, value in tiny_clip(2).state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(CarbError, match=message) as caught:
        load_clip(str(tmp_path / "wrong.pt"))
    assert "wrong.pt" in str(caught.value) and len(str(caught.value)) < 500


def test_weights_of_a_classifier_stop(tmp_path):
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "conv.pt")
    with pytest.raises(CarbError, match="not the weights of a CLIP model"):
        load_clip(str(tmp_path / "conv.pt"))


def test_truncated_file_and_whole_pickled_module_stop(tmp_path, random_clip_file):
    (tmp_path / "cut.pt").write_bytes(random_clip_file.read_bytes()[:100_000])
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("cut.pt", "module.pt"):
        with pytest.raises(CarbError, match=name):
            load_clip(str(tmp_path / name))


def test_unknown_name_gets_the_nearest(home):
    with pytest.raises(CarbError, match="did you mean 'ViT-B/16'"):
        load_clip("ViT-B/61")
    with pytest.raises(CarbError, match="neither a file nor a known model"):
        load_clip("somewhere/else.pt")


# --- OpenAI's files: cache, folder, download, checksum -----------------------------------------------------------


def test_named_model_is_downloaded_once_and_checked(home, tmp_path, monkeypatch, random_clip_file, capsys):
    digest = _offer(monkeypatch, random_clip_file)
    model = load_clip("ViT-B/16")
    cached = home / ".cache" / "clip" / random_clip_file.name
    assert (model.name, model.fingerprint) == ("ViT-B/16", digest) and cached.is_file()
    # The second time nothing is fetched.
    monkeypatch.setattr(clip.clip, "_download", lambda *_: pytest.fail("downloaded again"))
    assert load_clip("ViT-B/16").fingerprint == digest
    # A folder of one's own comes before the cache.
    (tmp_path / "mine").mkdir()
    shutil.move(cached, tmp_path / "mine" / cached.name)
    cached.write_bytes(b"never looked at")
    assert load_clip("ViT-B/16", folder=str(tmp_path / "mine")).fingerprint == digest


def test_wrong_checksum_stops_and_names_the_file(home, monkeypatch, random_clip_file):
    _offer(monkeypatch, random_clip_file)
    cached = home / ".cache" / "clip" / random_clip_file.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(random_clip_file.read_bytes() + b"x")
    with pytest.raises(CarbError, match="move it away") as caught:
        load_clip("ViT-B/16")
    assert str(cached) in str(caught.value)


def test_failed_download_leaves_nothing_and_says_what_to_do(home, tmp_path, monkeypatch, random_clip_file):
    _offer(monkeypatch, random_clip_file)
    url = clip.clip._MODELS["ViT-B/16"]
    for broken in (url.replace(random_clip_file.name, "absent.pt"), "http://127.0.0.1:9/" + "0" * 64 + "/x.pt"):
        monkeypatch.setitem(clip.clip._MODELS, "ViT-B/16", broken)
        with pytest.raises(CarbError, match="download failed.*put it into"):
            load_clip("ViT-B/16")
    # The file is there, but not the one the checksum speaks of.
    bad = tmp_path / ("0" * 64) / "x.pt"
    bad.parent.mkdir()
    bad.write_bytes(b"not it")
    monkeypatch.setitem(clip.clip._MODELS, "ViT-B/16", bad.as_uri())
    with pytest.raises(CarbError, match="download failed"):
        load_clip("ViT-B/16")
    assert not list((home / ".cache" / "clip").iterdir())
    with pytest.raises(CarbError, match="clip_folder.*no such folder"):
        load_clip("ViT-B/16", folder=str(tmp_path / "nowhere"))


def test_jit_archive_opens_only_with_a_known_checksum(home, tmp_path, monkeypatch):
    model = tiny_clip(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (torch.zeros(1, 3, 64, 64), clip.tokenize(["a road"])), check_trace=False)
        torch.jit.save(traced, tmp_path / "jit.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened an unknown program"))
    with pytest.raises(CarbError, match="TorchScript archive that is none of OpenAI's"):
        load_clip(str(tmp_path / "jit.pt"))
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(home))
    _offer(monkeypatch, tmp_path / "jit.pt")
    loaded = load_clip("ViT-B/16")
    assert torch.equal(loaded.clip.visual.proj, model.visual.proj)


@pytest.mark.skipif(not SMALL_CLIP.is_file(), reason="the embedded CLIP is not built yet: carblib.scenes.pretrain_clip")
def test_embedded_clip_knows_scene_words_only():
    model = load_clip("small")
    assert model.patch == 8 and model.known_words("a road") == ["a", "road"]
    assert model.unknown_words("a road and a xylophone") == ["xylophone"]


# --- text --------------------------------------------------------------------------------------------------------


TEXTS = ["road", "a photo of a traffic light in the scene.", "", "itap of my bicyclist, signsymbol & pole."]


def test_text_embeddings_equal_clips_own_at_full_context(random_clip):
    with torch.no_grad():
        full = random_clip.clip.encode_text(clip.tokenize(TEXTS))
    reference = full / full.norm(dim=-1, keepdim=True)
    got = random_clip.encode_text(TEXTS)
    assert got.dtype == torch.float32 and got.shape == (4, 128)
    torch.testing.assert_close(got, reference, rtol=0, atol=1e-6)
    # Batches, whatever their size, and the order of texts change nothing.
    torch.testing.assert_close(random_clip.encode_text(TEXTS, batch_size=1), got, rtol=0, atol=1e-6)
    torch.testing.assert_close(random_clip.encode_text(TEXTS[::-1]).flip(0), got, rtol=0, atol=1e-6)


def test_text_context_is_cut_to_the_longest_prompt(random_clip, monkeypatch):
    seen = []
    original = random_clip.clip.encode_text
    monkeypatch.setattr(random_clip.clip, "encode_text", lambda t: seen.append(t.shape[1]) or original(t))
    random_clip.encode_text(["road", "a sidewalk here"])
    assert seen == [5]


def test_text_over_the_context_length_stops(random_clip):
    with pytest.raises(CarbError, match="too long"):
        random_clip.encode_text(["word " * 100])


def test_unknown_words_are_those_with_an_untrained_token(random_clip):
    model = ClipModel(copy.deepcopy(random_clip.clip), "x", "x")
    tokens = clip.clip._tokenizer.encode("signsymbol")
    assert len(tokens) > 1
    model.clip.token_embedding.weight.data[tokens[-1]] = 0
    assert model.unknown_words("A Signsymbol, on the road!") == ["signsymbol"]
    assert model.known_words("A Signsymbol, on the road!") == ["a", "on", "the", "road"]
    assert random_clip.unknown_words("signsymbol") == []


# --- open_clip ---------------------------------------------------------------------------------------------------


def test_open_clip_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CarbError, match=r"pip install open_clip_torch"):
        load_clip("open_clip:ViT-B-16/laion2b_s34b_b88k")


def _tiny_open_clip(open_clip, monkeypatch, tmp_path, **changes):
    """Register an architecture small enough for a test and save random weights of it."""
    config = {
        "embed_dim": 32,
        "quick_gelu": changes.pop("quick_gelu", False),
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, **changes},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", config)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test").eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    return model, f"open_clip:tiny-test/{tmp_path / 'tiny.pt'}"


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}, {"head_width": 16}])
def test_open_clip_model_embeds_as_open_clip_does(monkeypatch, tmp_path, changes):
    open_clip = pytest.importorskip("open_clip")
    source, name = _tiny_open_clip(open_clip, monkeypatch, tmp_path, **changes)
    model = load_clip(name)
    assert model.patch == 8 and model.dim == 32 and len(model.fingerprint) == 64
    with torch.no_grad():
        theirs = source.encode_text(open_clip.tokenize(TEXTS), normalize=True)
        pixels = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(model.encode_text(TEXTS), theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.visual(pixels), source.encode_image(pixels), rtol=1e-4, atol=1e-5)
    assert load_clip(name, official=True).visual.ln_post.eps == 1e-6


def test_open_clip_is_told_apart_by_architecture_and_file(monkeypatch, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    _, name = _tiny_open_clip(open_clip, monkeypatch, tmp_path)
    quick = open_clip.factory._MODEL_CONFIGS["tiny-test"] | {"quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quick", quick)
    same_weights = name.replace("tiny-test", "tiny-quick")
    assert load_clip(name).fingerprint != load_clip(same_weights).fingerprint, "text embeddings are kept under it"
    contents = SimpleNamespace(digest=lambda path: str(path.stat().st_size))
    before = clip_digest(name, "", contents)
    (tmp_path / "tiny.pt").write_bytes(b"other weights")
    assert (
        clip_digest(name, "", contents) != before and clip_digest("open_clip:a/tag", "", contents) == "open_clip:a/tag"
    )


def test_open_clip_of_another_architecture_stops(monkeypatch, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    # Same keys and shapes, another pooling: only the comparison of outputs can tell.
    _, name = _tiny_open_clip(open_clip, monkeypatch, tmp_path, pool_type="avg")
    with pytest.raises(CarbError, match="not of OpenAI's architecture"):
        load_clip(name)
    _, name = _tiny_open_clip(open_clip, monkeypatch, tmp_path, ls_init_value=0.1)
    with pytest.raises(CarbError, match="not the weights of a CLIP model"):
        load_clip(name)


def test_open_clip_names_are_checked(tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    with pytest.raises(CarbError, match="must read open_clip:"):
        load_clip("open_clip:ViT-B-16")
    for name, unknown in (("ViT-B-61/openai", "ViT-B-61"), ("ViT-B-16/laion2b_s34b_b8k", "laion2b_s34b_b8k")):
        with pytest.raises(CarbError, match=rf"open_clip:{name}': not loaded \(.*{unknown}.*list_pretrained"):
            load_clip(f"open_clip:{name}")
    _, name = _tiny_open_clip(open_clip, monkeypatch, tmp_path)
    (tmp_path / "tiny.pt").write_bytes(b"PK nothing")
    with pytest.raises(CarbError, match="not loaded"):
        load_clip(name)


def test_build_clip_leaves_the_callers_state_alone():
    state = tiny_clip(1).state_dict()
    keys = set(state) | {"vocab_size"}
    state["vocab_size"] = torch.tensor(49408)
    build_clip(state, "test")
    assert set(state) == keys
