"""The one command: help that is light and lists all, mistakes in one line, exit codes, and data that makes itself."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import carb
from commands import group as root
from small import small_params

from carblib.base.errors import CarbError, Interrupted
from carblib.base.files import write_text
from carblib.data.readers import open_split
from carblib.params import Params, load_params
from carblib.run.command_line import Commands, run_and_exit
from carblib.run.list_params import GROUPS

TINY = {"root": "data/tiny", "scenes_train": 3, "scenes_val": 2, "scenes_test": 1, "image_size": (64, 128)}
TINY |= {"crop": (64, 128), "patch": (32, 32), "input_scale": 1, "aspp_dilations": (1, 2), "device": "cpu"}
TINY |= {"iterations": 2, "warmup": 1, "batch_size": 2, "val_every": 0, "bootstrap": 0, "lr": 0.05}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that is no group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def ends(*words: str) -> int:
    """Run the whole command line as `carb` does; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        run_and_exit(root, words)
    return ended.value.code


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    return tmp_path


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_fits_a_screen_and_names_every_command_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ends() == 0
    lines = capsys.readouterr().out.splitlines()
    assert 20 <= len(lines) <= 40
    for name in root.commands:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line) > 25 and not line.endswith("..."), "a sentence that is not cut"


@pytest.mark.parametrize("words", list(commands(root)), ids=" ".join)
def test_help_of_a_command_has_examples_that_can_be_parsed(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(*words, "--help") == 0
    examples = re.findall(r"^ +carb (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert examples
    for example in examples:
        given = shlex.split(example)
        assert tuple(given[: len(words)]) == words
        command: click.Command = root
        for word in words:
            command = command.commands[word]
        command.make_context(words[-1], given[len(words) :])


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, carblib.__main__\n"
        "print(*{'torch', 'numpy', 'pandas', 'matplotlib', 'pydantic'} & sys.modules.keys())\n"
        "import carblib.run.list_params\nprint(*{'torch', 'pandas', 'matplotlib'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    before = os.times()
    subprocess.run([sys.executable, "-m", "carblib", "--help"], capture_output=True, check=True)
    after = os.times()
    taken = after.children_user + after.children_system - before.children_user - before.children_system
    assert taken < 1, "seconds of the processor; a tenth is usual"


def test_parameters_are_listed_with_type_default_and_meaning(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert carb("params") == 0
    text = capsys.readouterr().out
    for key, field in Params.model_fields.items():
        assert re.search(rf"^  {key}: ", text, re.MULTILINE), key
        assert " ".join(field.description.split()[:4]) in " ".join(text.split())
    assert set(GROUPS) <= Params.model_fields.keys() and all(
        f"{title}:" in text.splitlines() for title in GROUPS.values()
    )
    line = next(line for line in text.splitlines() if line.startswith("  gate: "))
    assert line.endswith("(labels, official, none)")
    assert "([H, W] or null)" in text and "(list of integer)" in text and "(true or false)" in text
    write_text(home / "p.yaml", "momentum: 0.5\n")
    assert carb("params", home / "p.yaml") == 0
    text = capsys.readouterr().out
    assert re.search(r"  momentum: 0\.5 +momentum of SGD \(default 0\.9\)", text) and "dataset" not in text


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "p.yaml"], "no command 'trian'; did you mean 'train'?"),
        (["xyz"], "no command 'xyz'; there are demo, batch, "),
        (["checkpoints", "exprot"], "did you mean 'export'?"),
        (["masks", "p.yaml", "--slpit", "val"], "--split"),
        (["train"], "Missing argument 'PARAMS_FILE'. See carb train --help."),
        (["checkpoints"], "Missing command. See carb checkpoints --help."),
        (["evaluate", "p.yaml"], "Missing option '--folder'. See carb evaluate --help."),
        (["train", "p.yaml", "--variant", "plain", "papre"], "'papre' is not one of"),
        (["figures", "--only", "x", "runs/r"], "'RUN'. Arguments go first: --only takes all words after it. See carb"),
        (["train", "--variant", "plain", "p.yaml"], "Arguments go first: --variant takes all words after it."),
        (["train", "nothere.yaml"], "nothere.yaml: no such file"),
        (["train", "p.yaml", "-p", "iteratoins", "3"], "-p: 'iteratoins' is no parameter; did you mean 'iterations'?"),
        (["labels", "p.yaml", "--blank", "--from-npy", "x.npy"], "--blank, --from-npy, --add: give one of them"),
        (["masks", "p.yaml", "--processes", "0"], "'--processes': 0 is not in the range x>=1"),
        (["masks", "p.yaml", "--processes", "-1"], "-1 is not in the range x>=1"),
        (["scenes", "x", "--processes", "two"], "'two' is not a valid integer"),
        (["quality", "p.yaml", "--images", "0"], "'--images': 0 is not in the range x>=1"),
        (["pretrain", "clip", "--minutes", "0"], "'--minutes': 0.0 is not in the range x>0"),
    ],
)
def test_a_mistake_is_one_line(home: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(home / "p.yaml", small_params(**TINY).to_yaml())
    assert ends(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize(
    ("model", "place"), [("clip", "pretrain_clip.train_clip"), ("backbone", "pretrain_backbone.pretrain")]
)
def test_the_small_models_are_made_again(
    model: str, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(f"carblib.scenes.{place}", lambda *settings: asked.extend(settings))
    assert carb("pretrain", model, "--minutes", "2", "--output", tmp_path / "own") == 0
    assert asked[0] == 2 and asked[-1] == tmp_path / "own"


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {
        "refused": (PermissionError(13, "Permission denied", "/data/a.png"), 2),
        "mistaken": (CarbError("a.png: broken\n  by its maker; copy it again"), 2),
        "full": (RuntimeError("DefaultCPUAllocator: can't\nallocate memory"), 2),
        "stopped": (KeyboardInterrupt(), 130),
        "saved": (Interrupted(), 130),
        "one": (1, 1),
        "done": (None, 0),
    }
    group = Commands("carb")
    for name, (outcome, _) in outcomes.items():

        def body(outcome: object = outcome) -> object:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        group.command(name)(body)
    for name, (_, code) in outcomes.items():
        with pytest.raises(SystemExit) as ended:
            run_and_exit(group, [name])
        assert ended.value.code == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if name in ("refused", "mistaken"):
            assert said.count("\n") == 1 and re.match("error: (/data/|)a.png: (permission|broken)", said)
        if name == "full":
            assert said.count("\n") == 1 and "memory ran out; lower image_size, workers" in said
    group.command("wrong")(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # our own mistakes keep their trace
        run_and_exit(group, ["wrong"])


def test_an_option_that_may_be_repeated_takes_several_words() -> None:
    together = ["p", "--variant", "plain", "ours", "-p", "a", "b"]
    for words in (together, ["--variant", "plain", "--variant=ours", "p"]):
        found = root.commands["train"].make_context("train", words).params
        assert found["variants"] == ("plain", "ours") and found["params_file"] == "p"


# --- what a fresh user meets -----------------------------------------------------------------------------------------


def test_any_command_may_come_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Masks first, then everything else: nobody is told to render scenes, and no number of them is refused.
    file = home / "tiny.yaml"
    write_text(file, small_params(run="r", **TINY).to_yaml())
    assert carb("masks", file, "--split", "val") == 0
    assert len(list((home / "runs/r/pseudo_masks/val").glob("*.png"))) == 2
    assert len(list((home / "data/tiny/train").glob("*.png"))) == 3
    for first in ("labels", "analyse"):
        assert carb(first, file) == 0
    assert carb("train", file, "--variant", "plain", "ceiling") == 0
    folder = home / "runs/r/train"
    assert len(list((home / "runs/r/pseudo_masks/train").glob("*.png"))) == 3, "the training made its masks"
    assert carb("predict", file, "--checkpoint", folder / "plain/final.pt") == 0
    assert carb("evaluate", file, "--folder", home / "runs/r/predictions/plain/test") == 0
    assert "plain on test, 1 images: mIoU" in capsys.readouterr().out
    assert load_params(home / "runs/r/params.yaml") == load_params(file), "each of them left it"
    assert carb("predict", file, "-p", "lr", "0.06", "--checkpoint", folder / "plain/final.pt") == 0
    assert "plain/final.pt: was trained on other things: lr 0.05 → 0.06; predicts as it is" in capsys.readouterr().out
    assert carb("report", file) == 0, "without any notebook"
    assert "reaches" in (home / "runs/r/report.html").read_text("utf-8")


def test_parameters_that_differ_are_told_and_those_of_refused_commands_not_kept(home: Path, capsys) -> None:
    file, kept = home / "tiny.yaml", home / "runs/r/params.yaml"
    write_text(file, small_params(run="r", **TINY).to_yaml())
    assert carb("labels", file) == 0 and "former" not in capsys.readouterr().out
    assert carb("labels", file, "-p", "lr", "0.06", "-p", "workers", "1") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "former" in line]
    assert said == [f"{kept}: lr 0.05 → 0.06; what lies there was made with the former"]
    assert load_params(kept).lr == 0.06
    with pytest.raises(CarbError):
        carb("evaluate", file, "--folder", home / "nothing")
    assert load_params(kept).lr == 0.06
    write_text(kept, "lr: [")
    assert carb("labels", file) == 0 and load_params(kept) == load_params(file)


def test_scenes_rendered_as_the_error_says_are_not_refused_later(home: Path) -> None:
    params = small_params(run="r", **TINY)
    with pytest.raises(CarbError, match="render them: carb scenes ") as error:
        open_split(params, "val")
    words = shlex.split(str(error.value).split("render them: carb ")[1])
    assert carb(*words, "--size", 64, 128) == 0 and len(open_split(params, "val")) == 2
    write_text(home / "tiny.yaml", params.to_yaml())
    assert carb("labels", home / "tiny.yaml") == 0


def test_a_training_makes_only_the_masks_it_reads(home: Path) -> None:
    file, masks = home / "tiny.yaml", home / "runs/r/pseudo_masks"
    write_text(file, small_params(run="r", **TINY).to_yaml())
    assert carb("train", file, "--variant", "ceiling") == 0 and not masks.exists(), "true masks are no pseudo-masks"
    assert carb("train", file, "-p", "path", "dual") == 0 and not masks.exists()
    with pytest.raises(CarbError, match=r"mine/000001.png: no such pseudo-mask.*; `pseudo_masks` names this folder"):
        carb("train", file, "-p", "run", "s", "-p", "pseudo_masks", home / "mine")
    assert not (home / "mine").exists() and not (home / "runs/s/pseudo_masks").exists()


# --- a command for parameters ----------------------------------------------------------------------------------------


def test_parameters_know_the_command_that_has_them(home: Path) -> None:
    write_text(home / "a b.yaml", "run: x\npatch: [64, 64]\npath: single\n")
    overrides = {"crop": "[64, 128]", "labels": "my labels.csv"}
    params = load_params(home / "a b.yaml", overrides).updated(crf=True, mask_window=(3, 4), seed=0)
    words = shlex.split(params.command("masks", "--split", "val"))
    assert words[:3] == ["carb", "masks", str(home / "a b.yaml")] and words[-2:] == ["--split", "val"]
    assert "seed" not in words, "what is so already is not said"
    told = [words[place + 1 : place + 3] for place, word in enumerate(words) if word == "-p"]
    assert load_params(words[2], dict(told)) == params
    assert params.variant("plain").command("train") == params.command("train")
    assert Params().command("checkpoints import") == "carb checkpoints import PARAMS_FILE"


def test_where_parameters_come_from_makes_no_difference_to_them(home: Path) -> None:
    write_text(home / "p.yaml", "run: x\n")
    read, made = load_params(home / "p.yaml"), Params(run="x")
    assert read == made and hash(read.run) == hash(made.run) and read.model_dump() == made.model_dump()
    assert made.updated(seed=1).updated(seed=0) == made and repr(read) == repr(made)
