"""Any bytes under the name of a data file are items or one sentence; nothing of them runs, and no question leaks."""

import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedreft_lib import RunConfig
from fedreft_lib.data import FAMILIES
from fedreft_lib.errors import DataError, FedReFTError
from fedreft_lib.federation.dealing import partition_of
from tests.torture.files import FORMS, damaged_bytes, damaged_rows, tried, written

ENDINGS = (".json", ".jsonl", ".csv", ".tsv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def _one_file(folder, family, task, ending, content, split="train"):
    """Items, or the sentence that refuses the one file there is."""
    for path in folder.glob(f"{task}_*"):
        path.unlink()
    (folder / f"{task}_{split}{ending}").write_bytes(content)
    try:
        items = FAMILIES[family].load(task, split, source="local", data_dir=folder, seed=0)
    except FedReFTError as error:
        assert isinstance(error, DataError)
        assert str(error).isprintable() and str(folder) in str(error) and len(str(error)) < 1500
        return str(error)
    assert items and all(item.uid and item.task == task for item in items)
    return items


@settings(deadline=None, max_examples=150)
@given(form=st.sampled_from(FORMS), ending=st.sampled_from(ENDINGS), content=st.binary(max_size=200))
def test_any_bytes_are_items_or_a_sentence(folder, form, ending, content):
    _one_file(folder, *form[:2], ending, content)


@settings(deadline=None, max_examples=150)
@given(
    form=st.sampled_from(FORMS),
    ending=st.sampled_from(ENDINGS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["text"]), inner),
        max_leaves=6,
    ),
    data=st.data(),
)
def test_any_value_in_any_column_is_read_or_a_sentence(folder, form, ending, value, data):
    family, task, row = form
    rows = [row(i) for i in range(3)]
    rows[1][data.draw(st.sampled_from(list(rows[1])))] = value
    _one_file(folder, family, task, ending, written(rows, ending, random.Random(0)))


@settings(deadline=None, max_examples=150)
@given(form=st.sampled_from(FORMS), ending=st.sampled_from(ENDINGS), seed=st.integers(0, 2**32))
def test_any_damage_to_a_good_file_is_read_or_a_sentence(folder, form, ending, seed):
    family, task, row = form
    rng = random.Random(seed)
    rows = damaged_rows([row(i) for i in range(6)], rng)
    _one_file(folder, family, task, ending, damaged_bytes(written(rows, ending, rng), rng))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[1])
def test_every_form_of_the_battery_is_good_before_it_is_damaged(folder, form):
    family, task, row = form
    items = _one_file(folder, family, task, ".json", json.dumps([row(i) for i in range(12)]).encode())
    assert len(items) == 12


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[1])
@pytest.mark.parametrize(
    "harmless",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\n \n" + text + b"\r\n\n ",
    ],
    ids=["byte-order mark", "Windows line ends", "blank lines"],
)
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_harmless_damage_is_read_right(folder, form, harmless, ending):
    family, task, row = form
    content = written([row(i) for i in range(12)], ending, random.Random(1))
    assert _one_file(folder, family, task, ending, harmless(content)) == _one_file(
        folder, family, task, ending, content
    )


def test_a_short_form_of_the_battery_finds_nothing(tmp_path):
    result = tried(40, 1, tmp_path)
    assert result["failed"] == {} and result["tried"] == 40
    assert result["read"] + result["refused"] + result["repaired"] == 40 and min(result["read"], result["refused"]) > 0
    assert not list(tmp_path.iterdir())


class _Mark:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.mkdir, ()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_place_of_a_file_does_not_run(tmp_path, ending, protocol):
    content = pickle.dumps(_Mark(tmp_path / "ran"), protocol)
    for family, task, _ in FORMS:
        if family != "glue" or ending != ".csv":
            assert isinstance(_one_file(tmp_path, family, task, ending, content), str)
    assert not (tmp_path / "ran").exists()


# ---- repeats ----------------------------------------------------------------------------------------------------


def _own(folder, **sizes) -> RunConfig:
    sizes = {"train_size": 10, "held_out_size": 2, "test_size": 5} | sizes
    return RunConfig(
        backbone="tiny-llama", benchmark="commonsense", source="local", data_dir=str(folder), tasks=("own",),
        setup="distinct", clients=2, **sizes,
    )  # fmt: skip


def _questions(*numbers):
    return [{"question": f"Q{i}?", "choices": ["x", f"y{i}"], "gold": 0} for i in numbers]


@pytest.fixture
def repeated(tmp_path):
    """30 rows to train on, of which 3 come again in other letters and 3 are in the test too."""
    again = [row | {"question": row["question"].lower() + " "} for row in _questions(0, 1, 2)]
    (tmp_path / "own_train.json").write_text(json.dumps(_questions(*range(30)) + again))
    (tmp_path / "own_test.jsonl").write_text("\n".join(map(json.dumps, _questions(*range(27, 40), 39, 38))))
    return tmp_path


def test_a_repeat_is_left_out_and_a_test_question_is_never_trained_on(repeated):
    clients = partition_of(_own(repeated, train_size=11))
    trained = [item.question for client in clients for item in client.train + client.held_out]
    tested = [item.question for client in clients for item in client.test]
    assert len(trained) == len(set(trained)) == 26 and len(tested) == len(set(tested)) == 10
    assert set(trained) < {f"Q{i}?" for i in range(27)}
    assert set(tested) < {f"Q{i}?" for i in range(27, 40)}


@pytest.mark.parametrize(
    "sizes, said",
    [
        ({"train_size": 12}, "2 clients need 28 training questions of own, but there are 27 without repeats: ask for"),
        ({"test_size": 7}, "2 clients need 14 test questions of own, but there are 13 without repeats: ask for fewer"),
    ],
)
def test_too_few_rows_once_repeats_are_gone_are_one_sentence(repeated, sizes, said):
    with pytest.raises(DataError, match=said):
        partition_of(_own(repeated, **sizes))


@pytest.mark.parametrize("setup", ["distinct", "mixed", "iid", "dirichlet"])
def test_a_train_file_that_is_the_test_file_is_one_sentence(tmp_path, setup):
    for split in ("train", "test"):
        (tmp_path / f"own_{split}.json").write_text(json.dumps(_questions(*range(30))))
    with pytest.raises(DataError, match="training questions of .*, but there are 0 without repeats"):
        partition_of(_own(tmp_path).model_copy(update={"setup": setup}))
