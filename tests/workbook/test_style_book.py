"""The style flip book shows what the model writes, and any text in it stays text."""

import json
import re

import pandas as pd
import pytest
import torch

from fedreft_lib import assemble
from fedreft_lib.core.mixing import mix
from fedreft_lib.data import STYLES
from fedreft_lib.data.instruction import load
from fedreft_lib.model import scoring
from fedreft_lib.workbook import style_book, widgets
from tests.helpers.federations import finish, small

WRITES = {
    "benchmark": "instruction", "tasks": ("telegram", "steps", "tale", "card"), "test_size": 3, "max_new_tokens": 5,
    "method": "local", "rounds": 1, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def federation():
    return assemble(small(**WRITES))


def test_the_texts_are_those_that_each_state_writes_by_itself(federation):
    config = small(**WRITES)
    own, A = finish(config).states, torch.full((4, 4), 0.25)
    states = {lam: [federation.model.spec.named(row) for row in mix(own, A, lam)]
              for lam in (0.0, 0.5, 1.0)}  # fmt: skip
    found = style_book.written(federation, states, config, 2)
    for lam, of_lam in states.items():
        for client, state in zip(federation.clients, of_lam, strict=True):
            part = client.test[0].subset(range(2))
            rows = found[(found["lam"] == lam) & (found["client"] == client.name)]
            assert rows["written"].tolist() == scoring.generated(federation.model, state, part, config)
            assert rows["question"].tolist() == [item.question for item in part.items]
    assert found["written"].nunique() > 4  # the states differ, and so do the texts


def test_every_packaged_answer_is_recognised_and_a_plain_sentence_is_not():
    for style in STYLES:
        assert {style_book.style_of(item.response) for item in load(style, "test", source="packaged")} == {style}
    assert style_book.style_of("Ice floats.") == "none"


def book_of(**columns):
    return style_book.flip_book(pd.DataFrame({"lam": [0.0, 1.0], "client": "one", "task": "tale", **columns})).data


def test_a_text_cannot_leave_the_script_and_is_kept_as_it_is():
    evil = '</script><img src=x onerror=alert(1)><!-- <script> \u2028 " \\'
    page = book_of(question=evil, written=[evil, "1. Wait."])
    script = re.search(r"<script>(.*)</script>\s*$", page, re.DOTALL)[1]
    assert not re.search(r"</script|<!--|<img", script)
    markup, book = json.loads(re.search(r"start\(root, \.\.\.(\[.*\])\)\);", script)[1])
    assert book["texts"] == [[evil, "none"], ["1. Wait.", "steps"]]
    assert book["clients"][0]["asked"] == [{"question": evil, "texts": [0, 1]}]
    assert markup == widgets.source("widgets_style_book.html")


def test_where_scripts_do_not_run_a_sentence_stands_and_the_network_is_asked_for_nothing():
    page = book_of(question="Why?", written=["a", "b"])
    sentence, _ = page.split("<script>")
    assert "what 1 clients write while λ grows in 2 steps" in sentence and "<input" not in sentence
    assert not re.search(r"https?://|<(link|iframe)|src=|@import|fetch\(|require\(", page)
