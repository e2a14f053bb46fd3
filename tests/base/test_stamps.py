"""Stamps: every way in which what lies there can differ is used, renewed or refused, and never silent."""

from __future__ import annotations

import dataclasses

import pytest

from carblib.base.errors import CarbError
from carblib.base.locks import only_writer
from carblib.base.stamps import NAME, Stamp, compare, read_stamp, settle, to_make, write_stamp

NOW = Stamp("pseudo-masks", 1, {"masker": "naclip", "classes": [["road", ["road"]], ["sky", ["sky"]]]}, {"CLIP": "c1"},
            {"a": "1", "b": "2", "c": "3"})  # fmt: skip
RENEW = "carb masks x.yaml"


def made(folder, names="abc") -> None:
    for name in names:
        (folder / f"{name}.png").write_text(name)


def other(**changes) -> Stamp:
    return dataclasses.replace(NOW, **changes)


def test_new_then_used(tmp_path) -> None:
    assert settle(tmp_path, NOW, RENEW) == ["a", "b", "c"]
    made(tmp_path, "ab")
    assert settle(tmp_path, NOW, RENEW) == ["c"], "a stop: the rest is made"
    made(tmp_path)
    assert settle(tmp_path, NOW, RENEW) == []
    assert read_stamp(tmp_path / NAME) == NOW


def test_just_what_changed_is_renewed(tmp_path, capsys) -> None:
    settle(tmp_path, NOW, RENEW)
    (tmp_path / "colour").mkdir()
    made(tmp_path), made(tmp_path / "colour")
    now = other(items={"a": "1", "b": "9", "d": "4"})
    assert settle(tmp_path, now, RENEW) == ["b", "d"]
    said = "1 image changed, 1 image added, 1 image removed; what came of just those is made anew"
    assert said in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["a.png", "a.png"]
    made(tmp_path, "bd")
    assert settle(tmp_path, now, RENEW) == [] and not capsys.readouterr().out
    assert settle(tmp_path, now, RENEW, ["{}.png", "colour/{}.png"]) == ["b", "d"], "their pictures were never made"


def test_all_is_made_anew_where_it_was_asked_for(tmp_path, capsys) -> None:
    settle(tmp_path, NOW, RENEW)
    made(tmp_path)
    (tmp_path / "mine.txt").write_text("a person's")
    now = other(settings={"masker": "sclip"})
    assert settle(tmp_path, now) == ["a", "b", "c"] and "all is made anew" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name != NAME] == ["mine.txt"]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (other(settings={**NOW.settings, "masker": "sclip"}), 'masker "naclip" → "sclip"'),
        (other(settings={**NOW.settings, "classes": NOW.settings["classes"][::-1]}), "classes "),
        (other(settings={**NOW.settings, "gate": "none"}), 'gate null → "none"'),
        (other(upstream={"CLIP": "c2"}), "other CLIP"),
        (other(version=2), "older carblib"),
    ],
)
def test_what_was_made_otherwise_is_refused_and_left_alone(tmp_path, now, said) -> None:
    settle(tmp_path, NOW, RENEW)
    made(tmp_path)
    with pytest.raises(CarbError) as error:
        settle(tmp_path, now, RENEW)
    assert said in str(error.value) and f"{RENEW} --renew;" in str(error.value)
    assert len([*tmp_path.glob("*.png")]) == 3 and read_stamp(tmp_path / NAME) == NOW


def test_files_that_nobody_vouches_for_are_refused(tmp_path) -> None:
    made(tmp_path)
    with pytest.raises(CarbError, match="no stamp.json"):
        settle(tmp_path, NOW, RENEW)
    assert len([*tmp_path.glob("*.png")]) == 3


def test_a_damaged_stamp_is_never_believed(tmp_path) -> None:
    write_stamp(tmp_path / NAME, NOW)
    whole = (tmp_path / NAME).read_bytes()
    assert read_stamp(tmp_path / NAME) == NOW
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (tmp_path / NAME).write_bytes(flipped)
        try:
            found = read_stamp(tmp_path / NAME)
        except CarbError as error:
            assert "damaged" in str(error)
        else:
            assert found == NOW, "white space alone"


def test_order_of_images_does_not_matter_but_order_of_classes_does() -> None:
    assert compare(NOW, other(items=dict(reversed(NOW.items.items())))).none
    assert not compare(NOW, other(settings={**NOW.settings, "classes": NOW.settings["classes"][::-1]})).none


def test_long_values_are_cut_where_they_differ() -> None:
    rows = [[name, [name]] for name in ("road", "sidewalk", "building", "vegetation", "sky", "person", "car")]
    before, now = (other(settings={"classes": order}) for order in (rows, [*rows[:5], rows[6], rows[5]]))
    (said,) = compare(before, now).made_otherwise
    old, new = said.removeprefix("classes ").split(" → ")
    assert "person" in old and "car" in new.split("person")[0] and max(len(old), len(new)) < 70


def test_of_several_processes_each_makes_its_share_and_none_makes_it_otherwise(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with to_make(tmp_path, NOW, RENEW) as first:
        monkeypatch.setenv("RANK", "1")
        with to_make(tmp_path, NOW, RENEW) as second:
            assert (first, second) == (["a", "c"], ["b"])
        with pytest.raises(CarbError, match=r"others make .* here from something else \(3 images changed\)"):
            to_make(tmp_path, other(items=dict.fromkeys("abc", "x")), RENEW).__enter__()
    (tmp_path / "b.png").write_bytes(b"")
    with to_make(tmp_path, NOW, RENEW) as again:
        assert again == []


def test_processes_that_a_training_started_leave_the_files_to_the_first(tmp_path, monkeypatch) -> None:
    settle(tmp_path, NOW, RENEW)
    made(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")  # as Fabric sets it, which knows no RANK yet
    with only_writer(tmp_path), to_make(tmp_path, NOW, RENEW) as names:
        assert names == []
