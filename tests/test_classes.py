"""Class sets agree with the published ids, palettes and words; one's own classes are checked."""

import numpy as np
import pytest

from carblib.base.errors import CarbError
from carblib.classes import CAMVID, CITYSCAPES, WILDDASH2, WILDDASH2_CITYSCAPES, class_set

KNOWN = (CAMVID, CITYSCAPES, WILDDASH2, WILDDASH2_CITYSCAPES)

# The words of the paper's text embeddings, in train-id order.
PAPER_WORDS = {
    "cityscapes": "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, tree, grass, sky, "
    "pedestrian, rider, car, truck, bus, train, motorcycle, bicycle",
    "camvid": "sky, building, pole, road, sidewalk, tree, signsymbol, fence, car, pedestrian, bicyclist",
    "wilddash2": "ego vehicle, road, sidewalk, building, wall, fence, guard rail, pole, traffic light, traffic sign, "
    "vegetation, terrain, sky, person, rider, car, truck, bus, motorcycle, bicycle, pickup, van, billboard, "
    "streetlight, roadmarking",
}


@pytest.mark.parametrize("known", KNOWN, ids=lambda c: c.name)
def test_columns_agree(known):
    assert len(known.names) == len(known.words) == len(known.palette) == len(known.small) == len(known)
    assert len(set(known.names)) == len(known) == len(set(known.palette))
    assert all(words and len(set(words)) == len(words) for words in known.words)
    assert class_set(known.name) is known
    assert known.small_ids == tuple(np.flatnonzero(known.small))


@pytest.mark.parametrize("name", PAPER_WORDS)
def test_first_words_are_the_papers(name):
    assert ", ".join(words[0] for words in class_set(name).words) == PAPER_WORDS[name]


def test_colours_can_be_told_apart():
    for known in KNOWN:
        colours = np.array(known.palette, float)
        distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(len(known))
        assert distance.min() >= 20, known.name  # Cityscapes' own bus and train are 20 apart


def test_shared_classes_share_colours():
    for name in set(WILDDASH2.names) & set(CITYSCAPES.names):
        assert WILDDASH2.palette[WILDDASH2.index(name)] == CITYSCAPES.palette[CITYSCAPES.index(name)]


def test_small_classes():
    assert [CAMVID.names[i] for i in CAMVID.small_ids] == ["pole", "signsymbol", "pedestrian", "bicyclist"]
    assert "traffic light" in [CITYSCAPES.names[i] for i in CITYSCAPES.small_ids]


def test_own_classes():
    road = {"name": "road", "words": ["road", "street"], "colour": [1, 2, 3]}
    own = class_set([road, {"name": "car", "small": True}])
    assert own.names == ("road", "car") and own.words == (("road", "street"), ("car",))
    assert own.palette[0] == (1, 2, 3) and own.small_ids == (1,)
    assert class_set([{"name": "a", "colour": "#ff0080"}, "b"]).palette[0] == (255, 0, 128)
    assert len(set(class_set([f"c{i}" for i in range(30)]).palette)) == 30


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("camvit", "did you mean 'camvid'"),
        ([], "2 to 255"),
        ({"name": "a"}, "2 to 255"),
        (["a", "a"], "twice"),
        (["a", 3], "classes[1]"),
        (["a", {"words": ["x"]}], "'name'"),
        (["a", {"name": "b", "color": [1, 2, 3]}], "did you mean 'colour'"),
        (["a", {"name": "b", "colour": [1, 2, 300]}], "0–255"),
        (["a", {"name": "b", "colour": "#ff00zz"}], "colour"),
        (["a", {"name": "b", "words": []}], "words"),
        (["a", {"name": "b", "small": "yes"}], "true or false"),
        ([{"name": "a", "colour": [1, 2, 3]}, {"name": "b", "colour": [1, 2, 3]}], "twice"),
    ],
)
def test_mistakes_are_named(spec, word):
    with pytest.raises(CarbError, match="classes") as error:
        class_set(spec)
    assert word in str(error.value)


def test_an_unknown_class_names_the_nearest():
    assert CAMVID.index("pole") == 2
    with pytest.raises(CarbError, match="did you mean 'sidewalk'"):
        CAMVID.index("sidewalks")


@pytest.mark.parametrize("taken", ["name", "all"])
def test_a_class_cannot_be_called_as_a_column_of_ours(taken):
    with pytest.raises(CarbError, match=rf"classes\[1\]: '{taken}' stands for .*; choose another name"):
        class_set(["road", taken])


def test_names_that_look_alike_are_alike_and_stand_on_one_line():
    assert class_set(["e\u0301", "road"]).names == ("é", "road")
    with pytest.raises(CarbError, match=r"classes\[1\]: name 'é' is given twice"):
        class_set(["é", "e\u0301"])
    for entry in ("a\nb", "a\0b", {"name": "a", "words": ["a\tb"]}):
        with pytest.raises(CarbError, match=r"classes\[0\]: '(name|words)' cannot be"):
            class_set([entry, "road"])
