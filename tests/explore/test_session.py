"""Lists, tags, saved views and selections of the explorer, and the thread beside it."""

from __future__ import annotations

import asyncio
import csv
import datetime
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from explorer_runs import tiny_params

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.data.labels import ensure_labels, write_labels
from carblib.data.readers import open_split
from carblib.explore.explorer import UPLOADED, Explorer
from carblib.explore.later import Later
from carblib.explore.order import CLASS, DISAGREEMENT, MIOU, NAME, Choice, first_state, listed, measured, order, sorts
from carblib.explore.panel import ExplorerPanel
from carblib.explore.results import results_of
from carblib.explore.session import SavedView, Tags, export, open_view, save_view, saved_views
from carblib.explore.viewer import LOOK, layers_of, picture_of
from carblib.metrics import confusion, miou
from carblib.params import load_params
from carblib.stages.evaluate import evaluate_masks, evaluation_path


@pytest.fixture(scope="module")
def measured_explorer(home: Path) -> Explorer:
    """Image 2 takes its cars for trees, image 3 misses all poles."""
    params = tiny_params(run="measured")
    explorer = Explorer(params)
    split = explorer.splits["val"]
    car, tree, pole, road = (split.class_set.index(name) for name in ("car", "tree", "pole", "road"))

    def mistaken(index: int) -> np.ndarray:
        mask = split.mask(index).copy()
        mask[(mask == car) & (index == 1)] = tree
        mask[(mask == pole) & (index == 2)] = road
        return mask

    evaluate_masks(mistaken, split, params, "pseudo_masks_global")
    return explorer


def test_images_are_listed_by_what_went_wrong(measured_explorer: Explorer) -> None:
    explorer, split = measured_explorer, measured_explorer.splits["val"]
    names = split.class_set
    car, tree, pole = (names.index(name) for name in ("car", "tree", "pole"))
    by_name = order(explorer.params, split, "")
    assert order(explorer.params, split, "", CLASS, car)[0] == 1
    assert order(explorer.params, split, "", CLASS, pole)[0] == 2

    def of(**choice: object) -> list[int]:
        return listed(explorer, "val", "", Choice(**choice), {"000003"}, by_name)

    assert of(pair=(car, tree)) == [1] and of() == [0, 1, 2] and of(tag="odd") == [2]
    truths = [split.mask(index) for index in range(3)]
    for class_id in range(len(names)):
        assert of(present=class_id) == [i for i, truth in enumerate(truths) if (truth == class_id).any()]
    found = measured(explorer.params, split, "")
    missed = {(i, int(b)) for i, c, b, ok in zip(found.image, found.objects.class_ids, found.objects.bins,
              found.objects.found, strict=True) if c == pole and not ok}  # fmt: skip
    assert missed and {i for i, _ in missed} == {2}
    assert all(of(objects=(pole, size)) == [2] for _, size in missed)


def test_clicks_on_confusions_and_objects_list_images(measured_explorer: Explorer) -> None:
    panel = ExplorerPanel(measured_explorer)
    names = measured_explorer.class_set
    car, tree, pole = (names.index(name) for name in ("car", "tree", "pole"))
    results = panel.viewer.results
    assert results["confusion"][car][tree] == pytest.approx(1 - results["confusion"][car][car])
    panel.viewer.event = {"kind": "confusion", "truth": car, "predicted": tree, "time": 1.0}
    assert panel.listing.images == [1] and panel.viewer.gallery["note"] == "images car taken for tree"
    row = next(row for row in results["objects"] if row["class_id"] == pole)
    size = next(size for size, count in enumerate(row["missed"]) if count)
    panel.viewer.event = {"kind": "objects", "class_id": pole, "bin": size, "time": 2.0}
    assert panel.listing.images == [2] and f"missed pole of {results['bins'][size]}" in panel.viewer.gallery["note"]
    panel.controls.clear.click()
    assert panel.listing.images == [0, 1, 2] and panel.viewer.gallery["note"] == ""
    panel.controls.sort.value = (CLASS, car)
    assert panel.state.index == 1 and panel.viewer.gallery["rows"][0]["text"] == "IoU 0.0"
    assert all(row["thumb"][:2] == b"\xff\xd8" for row in panel.viewer.gallery["rows"])
    columns, row = panel.viewer.gallery["columns"], panel.viewer.gallery["rows"][0]
    cells = dict(zip([column["title"] for column in columns[1:]], row["cells"], strict=True))
    truth = measured_explorer.splits["val"].mask(1)
    matrix = confusion(np.where(truth == car, np.uint8(tree), truth), truth, len(names))
    assert cells["mIoU"] == f"{100 * miou(matrix):.1f}" and cells["IoU of car"] == "0.0" and cells["tags"] == ""
    share = np.sum(truth == car) / np.sum(truth != 255)
    assert cells["worst confusion, of all pixels"] == f"car → tree {100 * share:.1f} %"
    assert re.fullmatch(r"0 of \d+", cells["small objects missed"])
    panel.viewer.look = {**panel.viewer.look, "table": True}
    panel.controls.sort.value = (MIOU, 0)
    panel.controls.shown_class.value = pole
    assert "IoU of pole" in [column["title"] for column in panel.viewer.gallery["columns"]]
    panel.viewer.event = {"kind": "order", "by": CLASS, "class_id": car, "time": 3.0}
    assert panel.controls.sort.value == (CLASS, car) and panel.viewer.gallery["by"] == CLASS
    panel.controls.tag.options = ["any", "nowhere"]
    panel.controls.tag.value = "nowhere"  # which no image has
    assert panel.state.index == 1, "a tag that is gone is no condition"


def test_an_empty_list_holds_nothing_up(measured_explorer: Explorer) -> None:
    panel, car = ExplorerPanel(measured_explorer), measured_explorer.class_set.index("car")
    panel.viewer.event = {"kind": "confusion", "truth": car, "predicted": car - 1, "time": 1.0}
    assert panel.listing.images == [] and panel.viewer.place["count"] == 0 and panel.viewer.answered == 1.0
    panel.viewer.event = {"kind": "box", "row": 3, "column": 4, "time": 2.0}
    assert panel.viewer.answered == 2.0
    for act in (
        panel.save_figure,
        lambda: setattr(panel.controls.view_name, "value", "empty"),
        lambda: setattr(panel.viewer, "event", {"kind": "tag", "text": "odd", "time": 3.0}),
    ):
        panel.viewer.status = {"text": "", "error": False}
        act()
        assert panel.viewer.status == {"text": "no image is listed: clear a filter", "error": True}
    assert saved_views(measured_explorer) == [] and panel.save_figure() == []
    panel.viewer.event = {"kind": "order", "by": DISAGREEMENT, "class_id": 0, "time": 4.0}
    assert panel.viewer.answered == 4.0 and panel.controls.sort.value == (NAME, 0), "nothing is there to order by"


def test_an_evaluation_without_its_images_orders_nothing(measured_explorer: Explorer, home: Path) -> None:
    params = tiny_params(run="sums")
    explorer = Explorer(params)
    split, path = explorer.splits["val"], evaluation_path(params, "pseudo_masks_global", "val")
    source = evaluation_path(measured_explorer.params, "pseudo_masks_global", "val")
    path.parent.mkdir(parents=True)
    path.write_bytes(source.read_bytes())
    assert sorts(params, split, "") == [NAME] and results_of(explorer, split, "") == {}
    with pytest.raises(CarbError, match="evaluate it again"):
        listed(explorer, "val", "", Choice(pair=(0, 1)), set(), [0, 1, 2])
    files.write_text(path.with_suffix(".npz"), "no archive")
    with pytest.raises(CarbError, match="pseudo_masks_global.npz: cannot be read"):
        order(params, split, "", CLASS, 0)


def test_tags_are_kept(home: Path) -> None:
    explorer = Explorer(tiny_params(run="tagged"))
    tags = Tags(explorer)
    tags.change("val", "000002", "odd", True)
    tags.change("val", "000002", "night", True)
    tags.change("val", "000002", "odd", False)
    tags.change("val", "000001", "odd", True)
    again = Tags(explorer)
    assert again.known("val") == ["night", "odd"] and again.names("val", "night") == {"000002"}
    assert again.of("val", "000002") == ["night"] and again.of("test", "000002") == []
    panel = ExplorerPanel(explorer)
    tags.change("val", "000003", "dusk", True)
    panel.viewer.event = {"kind": "tag", "text": "late", "time": 1.0}
    assert panel.viewer.gallery["rows"][0]["cells"] == ["late odd"], "the table says so at once"
    assert Tags(explorer).of("val", "000003") == ["dusk"], "what another kernel wrote is kept"


def test_a_saved_view_comes_back(measured_explorer: Explorer) -> None:
    explorer = measured_explorer
    car, tree = (explorer.class_set.index(name) for name in ("car", "tree"))
    panel = ExplorerPanel(explorer)
    panel.viewer.event = {"kind": "confusion", "truth": car, "predicted": tree, "time": 1.0}
    panel.controls.local.value, panel.controls.words.value = True, "tree"
    panel.controls.sort.value = (CLASS, car)
    panel.viewer.look = {**panel.viewer.look, "scale": 3.0, "hidden": [4], "opacity": 0.4}
    for view, selection in (("saved", "1 images:"), ("replaced", "1 images in place of the earlier ones:")):
        panel.controls.view_name.value = "cars"
        assert panel.viewer.status["text"].startswith(f"view {view}: ") and panel.controls.view_name.value == ""
        panel.controls.selection.value = "cars"
        assert panel.viewer.status["text"].startswith(selection)
    other = ExplorerPanel(explorer)
    other.controls.open_view.value = "cars"
    assert other.state == panel.state and other.listing.choice == panel.listing.choice
    assert other.viewer.look == panel.viewer.look and other.listing.images == [1]
    path = explorer.folder / "views" / "cars.json"
    saved = files.read_json(path)
    for change, message in [
        ({"image": "gone"}, "image gone of split val"),
        ({"network": "papper"}, "network papper"),
        ({"strange": 1}, "strange is nothing a view has"),
        ({"masker": "mine"}, "masker mine is not there any more"),
        ({"class_id": 11}, "class_id 11 is not there any more"),
    ]:
        files.write_json(path, {**saved, "state": {**saved["state"], **change}})
        with pytest.raises(CarbError, match=message):
            open_view(explorer, "cars")
    with pytest.raises(CarbError, match="plain name"):
        save_view(explorer, "../x", SavedView(first_state(explorer), Choice(), LOOK))


def test_a_selection_is_a_run_of_its_own(home: Path) -> None:
    params = tiny_params(run="chosen")
    explorer = Explorer(params)
    rows = [{"tags": "odd", "miou": 0.5}, {"tags": "", "miou": None}]
    written = export(explorer, "val", [2, 0], "poles", rows)
    with written[0].open() as table:
        assert [(row["name"], row["tags"], row["miou"]) for row in csv.DictReader(table)] == [
            ("000003", "odd", "0.5"), ("000001", "", "")
        ]  # fmt: skip
    recipe = load_params(written[2])
    assert recipe == params.updated(run="chosen_poles", images="runs/chosen/explore/poles/images.txt")
    assert open_split(recipe, "val").names == ["000001", "000003"]
    assert (recipe.run, params.images, explorer.splits["val"].names[1]) == ("chosen_poles", "", "000002")
    files.write_text(written[1], "val/000009\n")
    with pytest.raises(CarbError, match="images.txt: lists val/000009"):
        open_split(recipe, "val")
    files.write_text(written[1], "train/000001\n")
    assert len(open_split(recipe, "val")) == 3, "a split that the list does not name is whole"
    with pytest.raises(CarbError, match="no such list"):
        open_split(params.updated(images="absent.txt"), "val")
    with pytest.raises(CarbError, match="holds no image"):
        export(explorer, "val", [], "none", [])


def test_a_selection_takes_the_labels_of_its_images_along(home: Path) -> None:
    params = tiny_params(run="labelled", train_split="val", labels="own.csv")
    names, classes = ("000001", "000002", "000003"), params.class_set
    write_labels(home / "own.csv", {name: np.arange(11) == place for place, name in enumerate(names)}, classes)
    written = export(Explorer(params), "val", [1], "one", [{}])
    recipe = load_params(written[2])
    split = open_split(recipe, "val")
    text = ensure_labels(recipe, split).read_text().splitlines()
    assert len(text) == 2 and text[1].startswith("000002,0,1,0")


def upload(panel: ExplorerPanel, name: str, content: bytes) -> None:
    file = {"type": "", "size": len(content), "last_modified": datetime.datetime.now(datetime.timezone.utc)}
    panel.controls.upload.value = ({"name": name, "content": memoryview(content), **file},)


def test_own_pictures_are_a_split(home: Path) -> None:
    params = tiny_params(run="own")
    files.write_text(params.run_dir / "explore" / UPLOADED / ".DS_Store", "left behind")
    panel = ExplorerPanel(Explorer(params))
    png = (params.data_root / "val" / "000002.png").read_bytes()
    upload(panel, "dash cam.png", png)
    assert panel.state.split == UPLOADED and panel.explorer.name(panel.state) == "dash cam"
    ids = [one["id"] for one in panel.viewer.layers["maps"]]
    assert "mask" in ids and "truth" not in ids and panel.viewer.layers["scores"] == []
    assert UPLOADED in Explorer(params).splits
    for name, content in (("note.txt", b"x"), ("bad.png", b"x"), ("dash cam.png", png)):
        upload(panel, name, content)
        assert panel.viewer.status["error"] and name in panel.viewer.status["text"], name
    assert {path.name for path in (panel.explorer.folder / UPLOADED).iterdir()} == {".DS_Store", "dash cam.png"}


def test_a_picture_of_an_earlier_name_is_not_taken_for_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it comes while CLIP looks: indices are those of the images by name."""
    params = tiny_params(run="zoo")
    explorer = Explorer(params)
    panel, real = ExplorerPanel(explorer), explorer.masker
    ant, bus, zoo = ((params.data_root / "val" / f"00000{n}.png").read_bytes() for n in (1, 2, 3))

    def masker(name: str) -> object:
        if len(explorer.splits[UPLOADED]) == 1:
            explorer.add_picture("bus.png", bus)
        return real(name)

    monkeypatch.setattr(explorer, "masker", masker)
    upload(panel, "zoo.png", zoo)
    fresh, state = Explorer(params), panel.state
    assert panel.viewer.layers == layers_of(fresh, replace(state, index=1))
    upload(panel, "ant.png", ant)
    fresh = Explorer(params)
    assert [row["thumb"] for row in panel.viewer.gallery["rows"]] == [fresh.thumb(UPLOADED, i) for i in range(3)]
    for place, name in enumerate(("ant", "bus", "zoo")):
        panel.viewer.event = {"kind": "goto", "place": place, "time": float(place)}
        assert panel.viewer.picture == picture_of(fresh, panel.state) and panel.viewer.place["name"] == name
        assert panel.viewer.layers == layers_of(fresh, panel.state)


def test_only_the_newest_job_is_told_of() -> None:
    told, begun, go = [], threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go.wait(20)
        return "slow"

    async def main() -> None:
        later = Later(threading.RLock())
        later.run(slow, told.append)
        await asyncio.to_thread(begun.wait, 20)
        for number in range(15):
            later.run(lambda number=number: number, told.append, wait=0.01)
        assert not told, "nobody waits"
        go.set()
        while not told:
            await asyncio.sleep(0.01)
        later.run(lambda: 1 / 0, told.append)
        while len(told) < 2:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert told[0] == 14 and isinstance(told[1], ZeroDivisionError) and len(told) == 2
    Later(threading.RLock()).run(lambda: "at once", told.append)
    assert told[2] == "at once"


def test_moving_on_never_waits_for_clip(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = Explorer(tiny_params())
    looks, go = [], threading.Event()
    real = explorer.masker

    def masker(name: str) -> object:
        looks.append(name)
        assert go.wait(20)
        return real(name)

    monkeypatch.setattr(explorer, "masker", masker)

    async def main() -> None:
        panel = ExplorerPanel(explorer, replace(first_state(explorer), index=0))
        for press in range(1, 16):
            panel.viewer.event = {"kind": "go", "by": 1 if press % 2 else -1, "time": float(press)}
            assert panel.viewer.answered == press
        assert panel.viewer.picture["key"] == "val/000002" and panel.viewer.layers["pending"]
        assert [one["id"] for one in panel.viewer.layers["maps"]] == ["truth"] and panel.showing.drawn == 0
        panel.controls.view_name.value = "early"
        go.set()
        while panel.viewer.layers["pending"]:
            await asyncio.sleep(0.01)
        assert "view saved: " in panel.viewer.status["text"], "it is not hidden by what comes later"
        assert panel.showing.drawn == 1 and panel.viewer.layers["key"] == "val/000002" and len(looks) == 1

    asyncio.run(main())
