"""Rendered scenes: same seed same bytes, exact masks, CamVid-like statistics, resumable writing."""

from __future__ import annotations

import contextlib
import functools
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import small_params

from carblib.base.errors import CarbError
from carblib.classes import CAMVID
from carblib.scenes import folders
from carblib.scenes import paint as scene_paint
from carblib.scenes.folders import USES, Scene, ensure_scenes, render_scene, scene_seed, write_scenes
from carblib.scenes.layout import draw_camera, draw_light
from carblib.scenes.street import Building, draw_building

SMALL = (64, 128)
# Percent of pixels over a set of scenes; the real CamVid's shares lie inside all bands.
BANDS = {
    "sky": (12, 24), "building": (16, 30), "pole": (0.8, 1.9), "road": (23, 34), "sidewalk": (4, 10), "tree": (6, 14),
    "signsymbol": (0.4, 1.6), "fence": (0.5, 2.6), "car": (3.5, 8.5), "pedestrian": (0.4, 1.3), "bicyclist": (0.2, 1.0),
}  # fmt: skip


@functools.cache
def scenes() -> list[Scene]:
    return [render_scene(scene_seed("val", k), (128, 256)) for k in range(60)]


def presence() -> np.ndarray:
    return np.stack([np.bincount(s.mask.ravel(), minlength=11) > 0 for s in scenes()])


def test_class_numbers_are_camvids():
    names = ["SKY", "BUILDING", "POLE", "ROAD", "SIDEWALK", "TREE", "SIGN", "FENCE", "CAR", "PEDESTRIAN", "BICYCLIST"]
    for name, word in zip(names, CAMVID.names, strict=True):
        assert word.startswith(name.lower()) and getattr(scene_paint, name) == CAMVID.index(word)


def test_same_seed_same_bytes_whatever_came_before():
    first = render_scene((3, 1, 4), SMALL)
    np.random.seed(5)
    render_scene(99, SMALL)
    second = render_scene((3, 1, 4), SMALL)
    assert (first.image == second.image).all() and (first.mask == second.mask).all()
    assert first.objects == second.objects and first.conditions == second.conditions


def test_other_seeds_other_scenes():
    seeds = [
        5,
        6,
        (5,),
        (5, 0),
        (5, 0, 0),
        (0, 5),
        scene_seed("train", 0),
        scene_seed("train", 1),
        scene_seed("val", 0),
    ]
    pictures = [render_scene(seed, SMALL).image.tobytes() for seed in seeds]
    assert len(set(pictures)) == len(seeds)


def test_global_random_state_is_left_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    render_scene(0, SMALL)
    assert (np.random.get_state()[1] == before).all()


def test_seeds_of_uses_are_disjoint():
    drawn = [scene_seed(use, index, seed) for use in USES for index in range(200) for seed in range(3)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(
    ("use", "index", "seed"), [("trian", 0, 0), ("train", -1, 0), ("train", 0, -1), ("val", 2**32, 0)]
)
def test_wrong_seed_requests_are_refused(use, index, seed):
    with pytest.raises(CarbError, match="scenes:"):
        scene_seed(use, index, seed)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.integers(32, 150), st.integers(32, 150))
def test_any_size_gives_a_full_picture(seed, height, width):
    scene = render_scene(seed, (height, width))
    assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
    assert scene.mask.shape == (height, width) and scene.mask.dtype == np.uint8
    assert scene.mask.max() <= 10
    assert scene.image.std() > 3


def test_too_small_a_size_is_refused():
    with pytest.raises(CarbError, match="32 pixels"):
        render_scene(0, (20, 512))


def test_objects_account_for_every_pixel_of_the_mask():
    for scene in scenes()[:30]:
        counted = np.zeros(11, int)
        for thing in scene.objects:
            top, left, bottom, right = thing.box
            inside = scene.mask[top:bottom, left:right] == thing.class_id
            assert 0 < thing.visible_pixels <= inside.sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            counted[thing.class_id] += thing.visible_pixels
            assert thing.colour and thing.kind
        assert (counted == np.bincount(scene.mask.ravel(), minlength=11)).all()


def test_statistics_are_camvid_like():
    shares = np.mean([np.bincount(s.mask.ravel(), minlength=11) / s.mask.size for s in scenes()], axis=0) * 100
    wrong = {n: round(v, 2) for (n, (lo, hi)), v in zip(BANDS.items(), shares, strict=True) if not lo <= v <= hi}
    assert list(BANDS) == list(CAMVID.names) and not wrong
    assert all(shares[k] < 2 for k in CAMVID.small_ids)


def test_most_classes_in_most_scenes_but_not_all():
    held = presence()
    assert 9.2 < held.sum(1).mean() < 10.6
    share = dict(zip(CAMVID.names, held.mean(0), strict=True))
    assert 0.7 < share["pedestrian"] < 0.97 and 0.45 < share["bicyclist"] < 0.8 and 0.45 < share["fence"] < 0.9


def test_scale_varies_and_small_people_occur():
    heights = [o.box[2] - o.box[0] for s in scenes() for o in s.objects if o.class_id == CAMVID.index("pedestrian")]
    assert np.percentile(heights, 10) <= 8 and np.percentile(heights, 95) >= 25  # of 128 rows


def test_light_varies():
    assert {s.conditions["light"] for s in scenes()} == {"sunny", "overcast", "dusk", "night"}


def test_colour_and_mask_are_one_picture():
    """Sky and the road under it differ in the image exactly where the mask says: pixel for pixel along the skyline."""
    agree = []
    for scene in scenes():
        if scene.conditions["light"] != "sunny":
            continue
        grey = scene.image.astype(float).mean(2)
        edge = scene.mask[1:] != scene.mask[:-1]
        step = np.abs(np.diff(grey, axis=0))
        agree.append(step[edge].mean() / step[~edge].mean())
    assert np.mean(agree) > 3


@pytest.mark.parametrize("kind", ["house", "shop", "office", "flats"])
def test_no_paint_outside_the_mask_of_a_house(kind):
    """Windows, shops and doors stay on the house: every painted pixel has its number (shadows aside, it has none)."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        light = draw_light(rng)
        canvas = scene_paint.Canvas(draw_camera((128, 256), 4.0, rng), light)
        canvas.image.paste((255, 0, 255), (0, 0, *canvas.image.size))
        canvas.ids.paste(200, (0, 0, *canvas.image.size))
        height, roof = float(rng.uniform(3.5, 12)), float(rng.uniform(1, 3)) * (seed % 2)
        draw_building(canvas, Building(5.5, 1, 6.0, 25.0, height, kind, roof), rng)
        painted = (np.asarray(canvas.image) != (255, 0, 255)).any(2)
        assert painted.sum() > 500
        assert (painted & (np.asarray(canvas.ids) == 200)).sum() == 0


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_written_files_are_camvids_form(tmp_path):
    folder = write_scenes(tmp_path, "test", 2, seed=3, size=SMALL)
    assert folder == tmp_path / "test"
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "testannot")) == ["000001.png", "000002.png"]
    scene = render_scene(scene_seed("test", 1, 3), SMALL)
    assert (read(folder / "000002.png") == scene.image).all()
    with Image.open(tmp_path / "testannot" / "000002.png") as mask:
        assert mask.mode == "L"
    assert (read(tmp_path / "testannot" / "000002.png") == scene.mask).all()


def test_writing_resumes_and_grows(tmp_path):
    write_scenes(tmp_path, "val", 3, size=SMALL)
    names = [tmp_path / "val" / f"{k:06d}.png" for k in (1, 2, 3, 4)]
    kept = names[0].stat().st_mtime_ns
    content = names[1].read_bytes()
    names[1].unlink()
    (tmp_path / "valannot" / "000003.png").unlink()
    write_scenes(tmp_path, "val", 4, size=SMALL)
    assert names[0].stat().st_mtime_ns == kept and names[1].read_bytes() == content
    assert names[3].is_file() and (tmp_path / "valannot" / "000003.png").is_file()


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": (64, 130)}, {"count": 1}])
def test_another_spec_in_the_same_folder_is_refused(tmp_path, change):
    spec = {"count": 2, "seed": 0, "size": SMALL}
    write_scenes(tmp_path, "val", **spec)
    before = sorted(p.read_bytes() for p in (tmp_path / "val").iterdir())
    with pytest.raises(CarbError, match="val"):
        write_scenes(tmp_path, "val", **(spec | change))
    assert sorted(p.read_bytes() for p in (tmp_path / "val").iterdir()) == before


def test_foreign_pictures_are_never_mixed_in(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0001TP_006690.png").write_bytes(b"x")
    with pytest.raises(CarbError, match="did not render"):
        write_scenes(tmp_path, "train", 2, size=SMALL)
    assert os.listdir(tmp_path) == ["train"]
    write_scenes(tmp_path, "val", 1, size=SMALL)
    (tmp_path / "val" / "mine.png").write_bytes(b"x")
    with pytest.raises(CarbError, match="holds mine.png, which carblib did not render; move it elsewhere"):
        write_scenes(tmp_path, "val", 1, size=SMALL)


def test_a_run_gets_its_three_splits_and_other_datasets_none(tmp_path):
    params = small_params(
        root=str(tmp_path / "s"), val_split="clip", scenes_train=2, scenes_val=1, scenes_test=1, scenes_seed=5
    )
    ensure_scenes(params.updated(dataset="camvid"))
    assert not (tmp_path / "s").exists()
    ensure_scenes(params)
    names = sorted(
        p.relative_to(tmp_path / "s").as_posix() for p in (tmp_path / "s").rglob("*.png") if "annot" not in str(p)
    )
    assert names == ["clip/000001.png", "test/000001.png", "train/000001.png", "train/000002.png"]
    write_scenes(tmp_path / "small", "train", 1, size=SMALL)
    ensure_scenes(small_params(root=str(tmp_path / "small"), scenes_train=2, scenes_val=1, scenes_test=1))
    assert read(tmp_path / "small/train/000002.png").shape[:2] == SMALL
    assert (read(tmp_path / "s/train/000002.png") == render_scene(scene_seed("train", 1, 5)).image).all()


def test_of_a_launchers_processes_the_first_of_a_machine_renders(tmp_path, monkeypatch):
    params = small_params(root=str(tmp_path / "s"), scenes_train=2, scenes_val=1, scenes_test=1)
    waited = []

    def others_turn(done, what):
        waited.append(done())
        assert not (tmp_path / "s").exists()
        monkeypatch.setenv("SLURM_LOCALID", "0")
        ensure_scenes(params)
        waited.append(done())

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setattr(folders, "wait_until", others_turn)
    ensure_scenes(params)
    assert waited == [False, True]


def interrupted(job):
    """In place of rendering: Ctrl-C, which a terminal sends to workers as well."""
    os.kill(os.getpid(), signal.SIGINT)
    return job[0], b"", b""


def test_ctrl_c_is_for_the_command_to_answer_not_for_its_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "render_pngs", interrupted)
    with contextlib.suppress(KeyboardInterrupt):  # which would end all tests
        write_scenes(tmp_path, "val", 66, processes=2)
    assert len(os.listdir(tmp_path / "val")) == 66


def test_processes_write_the_same_files(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(folders, "cores", lambda: 1)  # of those there are, this process may use one
        patch.setattr(folders, "ProcessPoolExecutor", None)
        write_scenes(tmp_path / "one", "val", 66, size=(32, 64))
    write_scenes(tmp_path / "two", "val", 66, size=(32, 64), processes=2)
    for one in sorted((tmp_path / "one").rglob("*.png")):
        assert one.read_bytes() == (tmp_path / "two" / one.relative_to(tmp_path / "one")).read_bytes()
