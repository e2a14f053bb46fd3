"""When inputs change, what lies on disk is used, renewed or refused: every artefact × every way, a test per cell.

`TABLE` is the table, `OWN` the same for what a person makes. Their words:

used     no file is touched and no line more is said than before the change
its      what was made of these images is made anew, nothing else, and a line says so
all      all is made anew, and a line says so
rest     what was lost is made, nothing else
goes on  the training goes on at its checkpoint
refused  nothing is touched; one line says what differs, and the command in it renews it
told     nothing is touched; one line says what differs; what to do is up to the person, so there is no command
-        no such case

What is renewed is, byte for byte, what would be made if nothing were there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import trees
import yaml
from commands import carb
from random_clip import tiny_clip

from carblib import masker
from carblib.base.errors import CarbError
from carblib.base.files import digest_of, read_json, write_json
from carblib.base.stamps import FILES, MASK, Stamp, read_stamp, settle
from carblib.clip_models import ClipModel, load_clip
from carblib.data.labels import training_labels
from carblib.data.readers import open_split
from carblib.data.sources import digests
from carblib.data.split import Split
from carblib.figures import draw
from carblib.figures.table import FIGURES
from carblib.params import Params, load_params, resolve
from carblib.run import batch, notebook, report, report_checks
from carblib.run import status as status_module
from carblib.run.status import STALE, UP_TO_DATE, status
from carblib.stages import mask_examples, pseudo_masks
from carblib.stages.dataset_analysis import analyse_split
from carblib.stages.pseudo_masks import export_clip_masks, export_masks
from carblib.stages.small_object_evaluation import evaluate_run
from carblib.training import loop, state

pytestmark = pytest.mark.slow  # hundreds of cells, a second and less each
TABLE = """
                    labels   masks    local    crf      finished  half     predicted
nothing             used     used     used     used     used      goes on  used
image replaced      used     its      its      its      refused   refused  its
image of new size   used     its      its      its      refused   refused  its
image added         its      its      its      its      refused   refused  its
image removed       its      its      its      its      refused   refused  its
image renamed       its      its      its      its      refused   refused  its
mask corrected      its      its      its      its      refused   refused  used
classes reordered   all      refused  refused  refused  refused   refused  told
class renamed       all      refused  refused  refused  refused   refused  told
class added         all      refused  refused  refused  refused   refused  told
word changed        used     refused  refused  refused  refused   refused  used
synonym changed     used     used     used     used     used      goes on  used
colours changed     used     used     used     used     used      goes on  used
masker              used     refused  refused  refused  refused   refused  used
gate                used     refused  refused  refused  refused   refused  used
mask_window         used     refused  refused  refused  refused   refused  used
image_size          used     refused  refused  refused  refused   refused  all
patch_rate          used     used     refused  used     refused   refused  used
lr                  used     used     used     used     refused   refused  used
seed                used     used     used     used     refused   refused  used
infer_flip          used     used     used     used     used      goes on  all
precision           used     refused  refused  refused  refused   refused  all
log_every           used     used     used     used     used      goes on  used
root moved          used     used     used     used     used      goes on  used
root with a slash   used     used     used     used     used      goes on  used
root absolute       used     used     used     used     used      goes on  used
root relative       used     used     used     used     used      goes on  used
root through a link used     used     used     used     used      goes on  used
CLIP replaced       used     refused  refused  refused  refused   refused  used
network retrained   -        -        -        -        -         -        all
stopped half way    -        rest     rest     rest     goes on   goes on  rest
"""

OWN = """
                    labels   masks    finished  crf of own  finished of own
nothing             used     used     used      used        used
0 or 1 corrected    used     its      refused   used        used
row missing         refused  refused  refused   used        used
image added         refused  refused  refused   told        told
image removed       told     told     told      its         refused
image renamed       told     told     told      told        told
image replaced      used     its      refused   its         refused
mask corrected      used     used     used      used        refused
own mask edited     used     used     used      its         refused
own mask missing    used     used     used      told        told
classes reordered   used     refused  refused   refused     refused
class renamed       told     told     told      refused     refused
class added         told     told     told      refused     refused
masker              used     refused  refused   used        refused
lr                  used     used     refused   used        refused
root moved          used     used     used      used        used
"""


# --- artefacts: the command that makes one, and where it lies ---------------------------------------------------------


class Artefact(NamedTuple):
    command: str
    place: str


MADE = {
    "labels": Artefact("labels p.yaml", "runs/r/labels"),
    "masks": Artefact("masks p.yaml", "runs/r/pseudo_masks/train"),
    "local": Artefact("masks p.yaml --local", "runs/r/pseudo_masks_local/train"),
    "crf": Artefact("masks p.yaml --crf", "runs/r/pseudo_masks_crf/train"),
    "finished": Artefact("train p.yaml --variant plain", "runs/r/train/plain"),
    "half": Artefact("train p.yaml --variant glv", "runs/r/train/glv"),
    "predicted": Artefact(
        "predict p.yaml --split train --checkpoint runs/r/train/plain/final.pt", "runs/r/predictions/plain/train"
    ),
}
HAND, GIVEN = "-p run h -p labels mine.csv", "-p run g -p pseudo_masks given"
OF_OWN = {
    "labels": Artefact(f"labels p.yaml {HAND}", "mine.csv"),
    "masks": Artefact(f"masks p.yaml {HAND}", "runs/h/pseudo_masks/train"),
    "finished": Artefact(f"train p.yaml {HAND} --variant plain", "runs/h/train/plain"),
    "crf of own": Artefact(f"masks p.yaml {GIVEN} --crf", "runs/g/pseudo_masks_crf/train"),
    "finished of own": Artefact(f"train p.yaml {GIVEN} --variant plain", "runs/g/train/plain"),
}
RETRAINED = Artefact("train p.yaml -p run other -p seed 1 --variant plain", "runs/other/train/plain")

CLASSES = [{"name": "road"}, {"name": "car"}, {"name": "traffic light", "words": ["traffic light", "lamp"]}]
KEYS = {
    "run": "r", "dataset": "folder", "root": "data", "classes": CLASSES, "clip": "clip.pt", "path": "single",
    "image_size": [32, 64], "crop": [32, 64], "patch": [16, 16], "resize_ratio": [1.0, 1.0], "photometric": False,
    "backbone": "small", "backbone_weights": "small", "freeze_backbone": True, "cache_features": True,
    "aspp_dilations": [1], "iterations": 2, "warmup": 1, "batch_size": 2, "lr": 0.05, "val_every": 0,
    "checkpoint_every": 1, "device": "cpu", "test_split": "train", "variants": ["plain", "glv"], "ceiling": False,
}  # fmt: skip


# --- ways in which inputs change --------------------------------------------------------------------------------------


class Way(NamedTuple):
    """How inputs change, what is said of it, and the images whose artefacts it changes."""

    change: Callable[[Path], None]
    said: str = ""
    names: str = ""


def image(home: Path, name: str, seed: int, size: tuple[int, int] = (32, 64)) -> None:
    trees.photo(home / "data/train" / f"{name}.png", seed, size)


def mask(home: Path, name: str, values: list[int], folder: str = "data/trainannot") -> None:
    trees.save(home / folder / f"{name}.png", trees.draw(ord(name), values, (32, 64)).astype(np.uint8))


def added(home: Path) -> None:
    image(home, "e", 5)
    mask(home, "e", [0, 2])


def removed(home: Path) -> None:
    for folder in ("train", "trainannot"):
        (home / "data" / folder / "b.png").unlink()


def renamed(home: Path) -> None:
    for folder in ("train", "trainannot"):
        (home / "data" / folder / "b.png").rename(home / "data" / folder / "z.png")


def write_keys(home: Path, **changes: Any) -> None:
    (home / "p.yaml").write_text(yaml.safe_dump({**KEYS, **changes}, sort_keys=False))


def keys(said: str = "", **changes: Any) -> Way:
    return Way(lambda home: write_keys(home, **changes), said)


def classes(said: str, *rows: dict[str, Any]) -> Way:
    return keys(said, classes=[*rows])


def moved(home: Path) -> None:
    (home / "data").rename(home / "elsewhere")
    write_keys(home, root="elsewhere")


def linked(home: Path) -> None:
    (home / "link").symlink_to(home / "data")
    write_keys(home, root="link")


def other_clip(home: Path) -> None:
    os.replace(home / "other_clip.pt", home / "clip.pt")


def edit_csv(home: Path, edit: Callable[[str], str]) -> None:
    before = (home / "mine.csv").read_text()
    (home / "mine.csv").write_text(edit(before))
    assert (home / "mine.csv").read_text() != before


def lose(home: Path) -> None:
    for path in [*home.glob("runs/r/pseudo_masks*/train/b.png"), *home.glob("runs/r/predictions/*/*/**/b.png")]:
        path.unlink()
    (home / "runs/r/train/plain/done.json").unlink()


ROAD, CAR, LIGHT = CLASSES
WAYS = {
    "nothing": Way(lambda home: None),
    "image replaced": Way(lambda home: image(home, "b", 9), "1 image changed", "b"),
    "image of new size": Way(lambda home: image(home, "b", 9, (40, 70)), "1 image changed", "b"),
    "image added": Way(added, "1 image added", "e"),
    "image removed": Way(removed, "1 image removed", "b"),
    "image renamed": Way(renamed, "1 image added, 1 image removed", "bz"),
    "mask corrected": Way(lambda home: mask(home, "b", [0, 1, 2]), "1 image changed", "b"),
    "classes reordered": classes("classes", CAR, ROAD, LIGHT),
    "class renamed": classes("classes", ROAD, CAR, {**LIGHT, "name": "lamp"}),
    "class added": classes("classes", ROAD, CAR, LIGHT, {"name": "sky"}),
    "word changed": classes("classes", ROAD, CAR, {**LIGHT, "words": ["signal", "lamp"]}),
    "synonym changed": classes("", ROAD, CAR, {**LIGHT, "words": ["traffic light", "signal"]}),
    "colours changed": classes("", *({**row, "colour": [i, 2, 3]} for i, row in enumerate(CLASSES))),
    "masker": keys('masker "value_path" → "sclip"', masker="sclip"),
    "gate": keys('gate "labels" → "none"', gate="none"),
    "mask_window": keys("mask_window null → [32, 32]", mask_window=[32, 32]),
    "image_size": keys("image_size [32, 64] → [40, 80]", image_size=[40, 80]),
    "patch_rate": keys("patch_rate 1.0 → 0.5", patch_rate=0.5),
    "lr": keys("lr 0.05 → 0.06", lr=0.06),
    "seed": keys("seed 0 → 3", seed=3),
    "infer_flip": keys("infer_flip false → true", infer_flip=True),
    "precision": keys('precision "32-true" → "bf16-mixed"', precision="bf16-mixed"),
    "log_every": keys(log_every=1),
    "root moved": Way(moved),
    "root with a slash": keys(root="data/"),
    "root absolute": Way(lambda home: write_keys(home, root=str(home / "data"))),
    "root relative": Way(lambda home: write_keys(home, root=f"../{home.name}/data")),
    "root through a link": Way(linked),
    "CLIP replaced": Way(other_clip, "other CLIP weights"),
    "network retrained": Way(
        lambda home: shutil.copy(home / RETRAINED.place / "final.pt", home / "runs/r/train/plain/final.pt"),
        "other network",
    ),
    "stopped half way": Way(lose, names="b"),
    "0 or 1 corrected": Way(lambda home: edit_csv(home, lambda text: text.replace("b,1,1,0", "b,1,0,1")),
                            "1 image changed", "b"),
    "row missing": Way(lambda home: edit_csv(home, lambda text: text.replace("b,1,1,0\n", "")),
                       "no line for image 'b'"),
    "own mask edited": Way(lambda home: mask(home, "b", [2], "given"), "1 image changed", "b"),
    "own mask missing": Way(lambda home: (home / "given/b.png").unlink(), "b.png: no such"),
}  # fmt: skip
# Where a person's file no longer fits the images or classes, the line is about that file.
TOLD = {
    ("own", "image added"): r"no line for image 'e'|e\.png: no such (pseudo-)?mask",
    ("own", "image removed"): "line 3: no image 'b' in the split|1 image removed",
    ("own", "image renamed"): r"line 3: no image 'b' in the split|z\.png: no such (pseudo-)?mask",
    ("own", "class renamed"): "no column 'lamp'|classes",
    ("own", "class added"): "no column 'sky'|classes",
}


def cells(table: str, kind: str, artefacts: dict[str, Artefact]) -> list[tuple[str, str, str, str]]:
    """The table's cells: kind, artefact, way, outcome. Columns stand where the header's words do."""
    header, *rows = table.strip("\n").splitlines()
    starts = [match.start() for match in re.finditer(r"(?<=  )\S", header)]
    columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    assert [header[column].strip() for column in columns] == [*artefacts]
    found = [
        (kind, artefact, row[: starts[0]].strip(), row[column].strip())
        for row in rows
        for artefact, column in zip(artefacts, columns, strict=True)
    ]
    return [cell for cell in found if cell[3] != "-"]


TABLE_CELLS, OWN_CELLS = cells(TABLE, "made", MADE), cells(OWN, "own", OF_OWN)
WAYS_OF_TABLE = [*dict.fromkeys(way for _, _, way, _ in TABLE_CELLS)]


# --- a project in which all is made -----------------------------------------------------------------------------------


def run(command: str) -> None:
    carb(*shlex.split(command))


@pytest.fixture(scope="module", autouse=True)
def hurry() -> Iterator[None]:
    """Hundreds of commands read the same two CLIPs, and their files need not survive a power cut."""
    known: dict[str, ClipModel] = {}

    def load(name: str, *rest: Any) -> ClipModel:
        content = digest_of(resolve(name).read_bytes())
        if content not in known:
            known[content] = load_clip(name, *rest)
        return known[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masker, "load_clip", load)
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four images, and every artefact of them. Tests get a copy of it each."""
    home = tmp_path_factory.mktemp("made") / "home"
    for seed, name in enumerate("abcd"):
        image(home, name, seed)
        mask(home, name, [0, 1] if name == "b" else [0, 1, 2])
        mask(home, name, [0, 1, 255], "given")
    torch.save(tiny_clip(1).state_dict(), home / "clip.pt")
    torch.save(tiny_clip(1, seed=1).state_dict(), home / "other_clip.pt")
    write_keys(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARB_HOME", str(home))
        patch.chdir(home)
        run(MADE["labels"].command)
        shutil.copy(home / "runs/r/labels/train.csv", home / "mine.csv")
        for artefact in (*MADE.values(), *OF_OWN.values(), RETRAINED):
            if artefact != MADE["half"] and can_be_made(artefact):
                run(artefact.command)
        stop_after_an_iteration(patch)
        with pytest.raises(RuntimeError, match="power cut"):
            run(MADE["half"].command)
        for path in home.rglob("*"):
            os.utime(path, (time.time() - 100,) * 2)
        [*status(load_params("p.yaml"))]  # files that are no longer young: their digests are kept from here on
    yield home


def stop_after_an_iteration(patch: pytest.MonkeyPatch) -> None:
    step = loop.step

    def cut(training: Any, batch: Any) -> Any:
        if training.iteration == 1:
            raise RuntimeError("power cut")
        return step(training, batch)

    patch.setattr(loop, "step", cut)


def can_be_made(artefact: Artefact) -> bool:
    return "--crf" not in artefact.command or importlib.util.find_spec("pydensecrf") is not None


def link_or_copy(source: str, target: str) -> None:
    """CLIP's weights are large and only ever replaced as a whole."""
    os.link(source, target) if source.endswith("clip.pt") else shutil.copy2(source, target)


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "home", copy_function=link_or_copy)
    known = tmp_path / "home/runs/.cache/contents.json"
    rows = {path.replace(str(made), str(tmp_path / "home")): row for path, row in read_json(known).items()}
    write_json(known, rows)  # the same files, as if never copied
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def masks_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images whose true masks are read."""
    read, plain = [], Split.mask
    monkeypatch.setattr(Split, "mask", lambda split, i: read.append(split.names[i]) or plain(split, i))
    return read


def files_of(place: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file; locks and the like are not looked at."""
    paths = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(place)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in paths
        if not path.name.startswith(".")
    }


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "way", "outcome"),
    [pytest.param(*cell, id=f"{cell[0]} {cell[1]}: {cell[2]}") for cell in (*TABLE_CELLS, *OWN_CELLS)],
)
def test_what_happens(
    kind: str,
    name: str,
    way: str,
    outcome: str,
    home: Path,
    masks_read: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    artefact = (MADE if kind == "made" else OF_OWN)[name]
    if not can_be_made(artefact):
        pytest.skip("pydensecrf is not installed (extra 'crf', Python < 3.13)")
    case = Case(home, artefact, TOLD.get((kind, way), WAYS[way].said), WAYS[way].names, masks_read, capsys)
    as_ever = case.run() if outcome == "used" else ""
    WAYS[way].change(home)
    case.start()
    if outcome == "used":
        assert case.run() == as_ever and not case.touched()
    elif outcome == "goes on":
        check_goes_on(case)
    elif outcome in ("refused", "told"):
        check_refused(case, has_remedy=outcome == "refused")
    else:
        check_renewed(case, outcome)
    if outcome not in ("used", "told"):
        check_that_nothing_is_left_to_do(case)


class Case:
    """An artefact, what is said of the change and whose images it concerns; `start` remembers what there is."""

    def __init__(
        self,
        home: Path,
        artefact: Artefact,
        said: str,
        names: str,
        masks_read: list[str],
        capsys: pytest.CaptureFixture[str],
    ):
        self.command, self.place, self.persons = artefact.command, home / artefact.place, ["mine.csv", "given", "data"]
        self.home, self.said, self.names, self.masks_read, self.capsys = home, said, names, masks_read, capsys
        self.is_training, self.is_hand_written = "train" in artefact.command.split(" ")[0], self.place.is_file()

    def start(self) -> None:
        self.before, self.theirs = files_of(self.place), [files_of(self.home / own) for own in self.persons]
        self.masks_read.clear()

    def run(self) -> str:
        """Run the artefact's command; return what it says of it, not what it finds odd about the data."""
        self.capsys.readouterr()
        run(self.command)
        lines = self.capsys.readouterr().out.splitlines(True)
        lines = [line for line in lines if "what lies there was made with the former" not in line]  # of parameters
        lines = [line for line in lines if not line.startswith(("odd: ", "data: nothing odd", "note: "))]
        return "".join(line for line in lines if self.place.name == "labels" or "derived anew" not in line)

    def touched(self) -> set[str]:
        """The files that are not as they were; those of a person always are."""
        assert [files_of(self.home / own) for own in self.persons] == self.theirs
        after = files_of(self.place)
        return {name for name in self.before | after if self.before.get(name) != after.get(name)}

    def says_what_differs(self, message: str) -> bool:
        for old, new in re.findall(r"classes (\[.+?) → (.+?)(?:, other|; )", message):
            assert old != new, "cut where they differ"
        return bool(re.search(self.said if "|" in self.said else re.escape(self.said), message))


def check_goes_on(case: Case) -> None:
    said = case.run()
    assert re.search(r"resuming at iteration [12]\n", said) and "anew" not in said
    assert {"done.json", "final.pt"} <= case.touched()


def check_refused(case: Case, has_remedy: bool) -> None:
    with pytest.raises(CarbError) as error:
        run(case.command)
    message = str(error.value)
    assert "\n" not in message and case.says_what_differs(message), message
    assert not case.touched()
    command = re.search(r"\bcarb (.+?)(?=; |$)", message)
    assert bool(command) == has_remedy, message
    if has_remedy:
        run(command[1])
        if "--add" in command[1]:
            go_on_with_the_added_row(case)
        else:
            assert case.touched()


def go_on_with_the_added_row(case: Case) -> None:
    """Images that were labelled just now are made, or, where all hangs together, refused once more."""
    try:
        run(case.command)
    except CarbError as error:
        run(re.search(r"\bcarb (train .+? --renew)", str(error))[1])


def check_renewed(case: Case, outcome: str) -> None:
    said, names = case.run(), [*case.names] if outcome != "all" else [*"abcd"]
    if case.place.name == "labels":
        expected = {"train.csv", "train.json"}
        assert sorted(case.masks_read) == [n for n in names if (case.home / f"data/train/{n}.png").exists()]
    else:
        needed = FILES if "predict" in case.command else MASK
        expected = {pattern.format(name) for pattern in needed for name in names}
        expected |= {"stamp.json"} if outcome != "rest" else set()
    assert case.touched() == expected
    assert ("anew" in said) == (outcome != "rest") and case.says_what_differs(said), said


def check_that_nothing_is_left_to_do(case: Case) -> None:
    """What is there now is used the next time, and is what would be made if nothing were there."""
    case.start()
    assert "anew" not in case.run() and not case.touched()
    if not case.is_training and not case.is_hand_written:
        shutil.rmtree(case.place)
        case.run()
        assert {n: data for n, (_, data) in files_of(case.place).items()} == {n: d for n, (_, d) in case.before.items()}


# --- carb status ------------------------------------------------------------------------------------------------------

ROWS = {"labels": "labels train", "masks": "pseudo-masks train", "finished": "training plain", "half": "training glv",
        "predicted": "predictions plain train"}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_OF_TABLE)
def test_status_says_what_the_commands_would_do(way: str, home: Path) -> None:
    WAYS[way].change(home)
    before = {name: files_of(home / name) for name in ("data", "mine.csv", "p.yaml", "runs/r")}
    found = {row.what: row for row in status(load_params("p.yaml"))}
    assert {name: files_of(home / name) for name in before} == before, "it changes nothing"
    for _, artefact, _, outcome in (cell for cell in TABLE_CELLS if cell[2] == way and cell[1] in ROWS):
        row = found[ROWS[artefact]]
        assert (row.state == UP_TO_DATE) == (outcome == "used"), (row, outcome)
        if artefact in ("labels", "masks") and row.state == STALE:
            assert row.why and (WAYS[way].said in row.why or "classes" in row.why)


@pytest.mark.parametrize("way", ["nothing", "image renamed", "mask corrected", "masker", "CLIP replaced"])
def test_the_commands_of_status_bring_all_up_to_date(way: str, home: Path) -> None:
    WAYS[way].change(home)
    for what in ROWS.values():
        (row,) = (row for row in status(load_params("p.yaml")) if row.what == what)
        if row.state != UP_TO_DATE:
            run(row.command.removeprefix("carb "))
    states = {row.what: row.state for row in status(load_params("p.yaml"))}
    assert {states[what] for what in ROWS.values()} == {UP_TO_DATE}


def test_status_goes_on_where_a_mask_of_the_user_is_missing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"train p.yaml {GIVEN} --variant plain")
    (home / "given/b.png").unlink()
    found = {row.what: row for row in status(load_params("p.yaml", {"run": "g", "pseudo_masks": "given"}))}
    assert (found["pseudo-masks train"].state, found["pseudo-masks train"].command) == ("missing", "")
    assert "1 of 4 of yours" in found["pseudo-masks train"].why
    assert "b.png: no such pseudo-mask" in found["training plain"].why
    assert "predictions glv train" in found and {"figures", "report"} <= found.keys(), "it goes on to the end"


def test_status_lists_predictions_of_another_split(home: Path) -> None:
    for folder in ("data/val", "data/valannot"):
        shutil.copytree(home / folder.replace("val", "train"), home / folder)
    other = load_params("p.yaml", {"val_split": "val"})
    assert "predictions plain val" not in {row.what for row in status(other)}
    run("predict p.yaml -p val_split val --split val --checkpoint runs/r/train/plain/final.pt")
    assert {row.what: row.state for row in status(other)}["predictions plain val"] == UP_TO_DATE
    trees.photo(home / "data/val/b.png", 9, (32, 64))
    (row,) = (row for row in status(other) if row.what == "predictions plain val")
    assert row.state == STALE and not row.notebook, "no notebook makes them, so no batch runs one again for them"


def test_missing_masks_are_told_before_features_are_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "given/b.png").unlink()
    monkeypatch.setattr(loop, "share", lambda params: pytest.fail("features were made"))
    with pytest.raises(CarbError, match=r"b\.png: no such pseudo-mask"):
        run("train p.yaml -p run new -p pseudo_masks given --variant plain")


# --- what figures show of CLIP ---------------------------------------------------------------------------------------


def test_figures_of_other_words_are_left_out_and_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> tuple[set[str], str]:
        run("report runs/r")
        page = (home / "runs/r/report.html").read_text("utf-8")
        return {"similarity_maps", "mask_examples"} & {*re.findall(r'<figure id="(\w+)"', page)}, page

    def states() -> dict[str, str]:
        return {row.what: row.state for row in status(load_params("p.yaml"))}

    def look(params: Params) -> None:
        split = open_split(params, "train")
        mask_examples.save_similarity(params, split)
        export_clip_masks(params, "train")
        mask_examples.save_examples(params, split, {"first": "a"})
        (home / "runs/r/params.yaml").write_text(params.to_yaml())

    names = ["similarity maps", "mask examples"]
    write_keys(home, val_split="train")
    look(load_params("p.yaml"))
    assert carb("figures", "runs/r") == 0
    assert shown()[0] == {"similarity_maps", "mask_examples"} and {states()[name] for name in names} == {UP_TO_DATE}

    write_keys(home, val_split="train", classes=[ROAD, CAR, {**LIGHT, "words": ["signal", "lamp"]}])
    run("masks p.yaml --renew")
    (home / "runs/r/params.yaml").write_text(load_params("p.yaml").to_yaml())
    capsys.readouterr()
    carb("figures", "runs/r")
    said = capsys.readouterr().out
    again = "notebook 02_pseudo_masks makes it again"
    assert f"not made: similarity_maps.npz: other classes; {again}" in said
    old = [f"{what}: other classes" for what in ("mask_examples.npz", "pseudo_masks_no_labels/train",
                                                 "pseudo_masks_local/train")]  # fmt: skip
    assert f"not made: {'; '.join(old)}; {again}" in said
    figures, page = shown()
    assert not figures and "similarity maps (similarity_maps.npz: other classes; notebook 02_pseudo_masks" in page
    rows = {row.what: row for row in status(load_params("p.yaml"))}
    assert {rows[name].state for name in names} == {STALE} and rows["figures"].state == STALE
    assert "--notebooks 02" in rows["similarity maps"].command and rows["similarity maps"].notebook == "02_pseudo_masks"

    run("masks p.yaml --local --renew")
    look(load_params("p.yaml"))
    assert carb("figures", "runs/r") == 0
    assert shown()[0] == {"similarity_maps", "mask_examples"} and {states()[name] for name in names} == {UP_TO_DATE}
    np.savez(home / "runs/r/similarity_maps.npz", split="train")  # of a carblib that did not note what from
    assert states()["similarity maps"] == STALE and shown()[0] == {"mask_examples"}


def test_masks_of_images_without_true_masks_are_looked_at_as_well(home: Path) -> None:
    trees.photo(home / "data/val/x.png", 7, (32, 64))
    write_keys(home, gate="none")
    export_clip_masks(load_params("p.yaml"), "val")
    write_keys(home, gate="none", classes=[ROAD, CAR, {**LIGHT, "words": ["signal", "lamp"]}])
    rows = {row.what: row for row in status(load_params("p.yaml"))}
    row = rows["local pseudo-masks val"]
    assert row.state == STALE and row.command.endswith("masks p.yaml --split val --local --renew")
    assert rows["pseudo-masks val"].state == STALE and "evaluation pseudo_masks_local val" not in rows


# --- carb batch -------------------------------------------------------------------------------------------------------


def study_data(params: Params) -> None:
    split = open_split(params, params.train_split)
    training_labels(params, split)
    analyse_split(split, params)


NOTEBOOKS = {
    "01_dataset_analysis": study_data,
    "02_pseudo_masks": lambda params: export_masks(params, "train"),
    "03_train": lambda params: loop.train_variants(params, params.trainings),
    "04_small_object_evaluation": evaluate_run,
}


@pytest.fixture
def quick_batch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches whose notebooks are just their stages, and two figures that show how many images there are."""

    def execute(source: Path, output: Path, parameters: dict[str, str]) -> None:
        params = load_params("p.yaml")
        NOTEBOOKS[source.stem](params)
        notebook.finish(params, source.stem, {})

    chosen = tuple(FIGURES[name] for name in ("samples", "iou_per_class"))
    monkeypatch.setattr(batch, "execute", execute)
    for module in (draw, status_module, report_checks, report):
        monkeypatch.setattr(module, "TABLE", chosen)


def test_a_batch_renews_what_is_stale_and_trains_anew_if_forced(
    home: Path, quick_batch: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        capsys.readouterr()
        assert carb("batch", "p.yaml", *words) in (0, 1)
        return capsys.readouterr().out

    told()
    assert told().count("finished before, skipped") == 4, "nothing is stale"
    predictions = home / "runs/r/predictions/plain/train"
    shutil.copy(predictions / "a.png", predictions / "b.png")
    mask(home, "c", [1], "runs/r/predictions/plain/train")
    said = told()
    assert said.count("skipped") == 3
    assert "04_small_object_evaluation: runs again (evaluation plain train: other predictions)" in said

    added(home)
    said = told()
    assert "runs again (labels train: 1 image added; analysis: other masks)" in said
    refusal = "FAILED 03_train: training plain: on other things: 1 image added; to train anew: "
    assert f"{refusal}carb batch {home / 'p.yaml'} --force" in said
    assert "FAILED" not in told("--force")
    assert len(read_stamp(home / "runs/r/train/plain/stamp.json").items) == 5
    for name, number in (("samples", "3 of 5 images"), ("iou_per_class", "5 images")):
        record = read_json(home / f"figures/r/{name}.json")
        assert f"({number}" in record["source"], record["source"]
    assert {row.state for row in status(load_params("p.yaml"))} == {UP_TO_DATE}
    assert "5 images of split train" in (home / "runs/r/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("key", "value", "refusal"), [("masker", "naclip", "never saw"), ("backbone_weights", "nope.pth", "no such file")]
)
def test_what_cannot_be_made_anew_is_not_deleted(
    home: Path, key: str, value: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files_of(name: str) -> dict[str, bytes]:
        folder = home / MADE[name].place
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def refuse(*_: object) -> None:
        raise CarbError("class 'zebra': CLIP never saw 'zebra' in training")

    assert carb("train", "p.yaml", "--variant", "plain") == 0
    before = files_of("masks"), files_of("finished")
    commands = [["train", "p.yaml", "--variant", "plain"]]
    if key == "masker":
        commands.append(["masks", "p.yaml"])
        for module in (pseudo_masks, state):
            monkeypatch.setattr(module, "build_masker", refuse)
    for command in commands:
        with pytest.raises(CarbError, match=refusal):
            carb(*command, "--renew", "-p", key, value)
    assert (files_of("masks"), files_of("finished")) == before


# --- a person's labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["as we write it", "of a spreadsheet", "without a last line's end"])
def test_missing_rows_are_appended_and_all_others_kept_to_the_byte(
    home: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "name,road,car,traffic light\na,1,1,1\nd,0,1,0\n"
    if form == "of a spreadsheet":  # a mark at the start, its own order, spaces, its line ends
        text = "\ufeff car,name,traffic light,road\r\n1,a,1,1\r\n1,d, 0,0\r\n"
    elif form == "without a last line's end":
        text = text[:-1]
    before = text.encode()
    (home / "mine.csv").write_bytes(before)
    run(f"labels p.yaml {HAND} --add")
    assert "2 images added" in capsys.readouterr().out
    after = (home / "mine.csv").read_bytes()
    assert after.startswith(before)
    end = b"\r\n" if form == "of a spreadsheet" else b"\n"
    rows = [b"1,b,0,1", b"1,c,1,1"] if form == "of a spreadsheet" else [b"b,1,1,0", b"c,1,1,1"]
    assert after[len(before) :].strip().splitlines() == rows and after.count(end) == 5
    run(f"labels p.yaml {HAND} --add")
    assert "0 images added" in capsys.readouterr().out and (home / "mine.csv").read_bytes() == after


def test_rows_appended_to_derived_labels_leave_them_derived(home: Path) -> None:
    added(home)
    run("labels p.yaml --add")
    mask(home, "b", [0, 1, 2])
    run("labels p.yaml")
    assert "b,1,1,1" in (home / "runs/r/labels/train.csv").read_text(), "not taken for a person's own"


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_stop_while_labels_are_written_leaves_them_derived(
    moment: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask(home, "b", [0, 1, 2])
    happened = []

    def power_cut(plain: Callable[..., Any]) -> Callable[..., Any]:
        def cut(*arguments: Any, **more: Any) -> Any:
            happened.append(plain)
            if len(happened) == moment:
                raise RuntimeError("power cut")
            return plain(*arguments, **more)

        return cut

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, power_cut(getattr(os, name)))
        try:
            run("labels p.yaml")
        except RuntimeError as error:
            assert str(error) == "power cut"
    mask(home, "c", [0])
    run("labels p.yaml")
    rows = (home / "runs/r/labels/train.csv").read_text().splitlines()[1:]
    assert rows == ["a,1,1,1", "b,1,1,1", "c,1,0,0", "d,1,1,1"]


# --- thousands --------------------------------------------------------------------------------------------------------


def test_of_thousands_of_images_just_the_changed_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    params, folder, images = Params(run="r"), tmp_path / "masks", tmp_path / "images"
    names = [f"{i:05d}" for i in range(3000)]
    images.mkdir(), folder.mkdir()
    paths = [images / f"{name}.png" for name in names]

    def check() -> list[str]:
        return settle(folder, Stamp("pseudo-masks", 1, {}, {}, digests(params, names, paths)), "carb masks x.yaml")

    for path in paths:
        path.write_text(path.name)
        os.utime(path, (1e9, 1e9))
    assert check() == names
    for name in names:
        (folder / f"{name}.png").touch()
    assert check() == [] and not capsys.readouterr().out
    paths[1234].write_text("another")
    started = time.process_time()
    assert check() == ["01234"]
    assert time.process_time() - started < 2
    assert "1 image changed; what came of just those is made anew" in capsys.readouterr().out
    assert len([*folder.glob("*.png")]) == 2999
