"""Items and clients are told apart by all that they hold."""

from dataclasses import replace

from fedreft_lib import partition_of
from fedreft_lib.data import Exchange, Labelled, Question
from fedreft_lib.data.items import content
from tests.helpers.federations import small


def test_no_two_items_that_differ_in_anything_say_the_same():
    question = Question("a", "", "q", ("1", "2"), 0)
    exchange, labelled = Exchange("a", "q", "r", "1", "number"), Labelled("a", "q", "", 0, 2)
    items = [
        question, replace(question, task="b"), replace(question, context="q", question=""),
        replace(question, question="Q"), replace(question, choices=("2", "1")), replace(question, gold=1),
        replace(question, choices=("1, 2", "2")), replace(question, choices=("1", "2", "2")),
        exchange, replace(exchange, response="r "), replace(exchange, answer="2"), replace(exchange, kind="letter"),
        replace(exchange, answer="", kind="text"),
        labelled, replace(labelled, text_b="q"), replace(labelled, label=1), replace(labelled, classes=3),
        replace(labelled, label=0.0, classes=0), replace(labelled, label=1.0, classes=0),
    ]  # fmt: skip
    assert len({content(item) for item in items}) == len(items)


def test_a_clients_fingerprint_tells_splits_order_and_names_apart():
    client = partition_of(small())[0]
    moved = replace(client, train=client.train[1:], held_out=(client.train[0], *client.held_out))
    turned, named = replace(client, train=client.train[::-1]), replace(client, name="client9")
    assert len({each.fingerprint for each in (client, moved, turned, named)}) == 4
    assert replace(client).fingerprint == client.fingerprint
