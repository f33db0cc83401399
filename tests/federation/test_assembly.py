"""What runs share: one model and everybody's data, read and encoded once, whatever the method."""

import pytest
import torch

from fedreft_lib import run
from fedreft_lib.data import Question, render
from fedreft_lib.errors import ConfigError, DataError
from fedreft_lib.federation import assembly
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.model import scoring
from fedreft_lib.model.fast import hidden_cache, hidden_files
from fedreft_lib.model.fast.packed_attention import GIVEN, packs
from fedreft_lib.model.reader import Reader
from tests.helpers.federations import agreeing, small


def test_runs_that_differ_in_method_mixing_or_schedule_share_one_federation():
    federation = assemble(small())
    changes = {
        "method": "fedavg", "mixing": "adaptive", "aggregation": "mean", "lr": 0.5, "rounds": 9, "local_steps": 3,
        "batch_size": 2, "retraction": "qr", "init": "random", "clip": 9.0, "experiment": "x", "eval_every": 1,
    }  # fmt: skip
    for name, value in changes.items():
        assert assemble(small(**{name: value})).clients is federation.clients, name


def test_every_parameter_that_says_what_is_learned_on_makes_another_federation():
    changes = {
        "tasks": ["boolq"], "prompt_format": "llm_adapters", "max_length": 60, "setup": "mixed", "clients": 5,
        "train_size": 9, "test_size": 6, "union_size": 3, "seed": 1,
    }  # fmt: skip
    federation = assemble(small())
    for name, value in changes.items():
        assert (
            name in small().parameters_of("data") and assemble(small(**{name: value})).clients is not federation.clients
        ), name


def test_federations_share_the_backbone():
    assert assemble(small()).model.backbone is assemble(small(rank=3)).model.backbone


def test_clients_train_on_the_right_answers_and_are_tested_with_all_options():
    federation = assemble(small(max_length=512))
    decode = federation.model.backbone.tokenizer.decode
    for client, questions in zip(federation.clients, federation.questions, strict=True):
        for answers, asked in ((client.train, questions.train), (client.held_out, questions.held_out)):
            assert len(answers) == len(asked)
            for sequence, question in zip(answers.sequences, asked, strict=True):
                example = render(question, "plain")
                assert decode(sequence.ids) == example.prompt + example.options[example.gold]
                assert decode(sequence.ids[: sequence.prompt_length]) == example.prompt
        (test,) = client.test
        assert test.tasks == [q.task for q in questions.test]
        for i, question in enumerate(questions.test):
            example, sequence = render(question, "plain"), test.sequences[i]
            assert decode(sequence.ids) == example.prompt + "".join(example.options)
            assert int(test.gold[i]) == question.gold
            lengths = [3, 2] if question.task == "boolq" else [len(choice) for choice in question.choices]  # yes, no
            assert test.characters[i].tolist() == lengths


def test_a_model_that_is_to_generate_learns_where_an_answer_ends_and_reads_bare_prompts():
    federation = assemble(small(prompt_format="llm_adapters", scoring="generation", max_length=512))
    tokenizer = federation.model.backbone.tokenizer
    client, questions = federation.clients[1], federation.questions[1]
    assert all(s.ids[-1] == tokenizer.eos_token_id for s in client.train.sequences)
    assert [tokenizer.decode(s.ids) for s in client.test[0].sequences] == [
        render(q, "llm_adapters").prompt for q in questions.test
    ]
    assert client.test[0].labels == [("solution1", "solution2")] * 5 and client.test[0].hidden is None
    assert federation.clients[3].test[0].labels[0] == ("true", "false")


def test_no_text_is_longer_than_max_length_and_the_end_of_the_question_stays():
    federation = assemble(small(max_length=32))
    decode = federation.model.backbone.tokenizer.decode
    for client in federation.clients:
        for sequence in (*client.train.sequences, *client.test[0].sequences):
            longest = max(sequence.answer_lengths)
            assert sequence.prompt_length + longest <= 32
            assert decode(sequence.ids[: sequence.prompt_length]).endswith("Answer:")


# ---- the cache ------------------------------------------------------------------------------------------------------


def cached(federation):
    parts = [part for client in federation.clients for part in (client.train, client.held_out, *client.test)]
    return [part.hidden is not None for part in parts]


def test_hidden_states_are_cached_where_the_first_site_is_above_the_first_block():
    assert all(cached(assemble(small(layers="2-3"))))
    assert not any(cached(assemble(small(layers="0-2"))))


def test_what_does_not_fit_is_not_cached_and_the_results_are_those_of_the_whole_model(monkeypatch, tmp_path):
    config = small(layers="2-3")
    full = assemble(config)
    size = sum(h.numel() * h.element_size() for h in full.clients[0].train.hidden)
    assembly._build.cache_clear()
    monkeypatch.setenv("FEDREFT_HIDDEN_STATES", str(tmp_path))
    monkeypatch.setattr(hidden_files, "DISK_LIMIT", 0)
    monkeypatch.setattr(hidden_cache, "MEMORY_LIMIT", size)
    with pytest.warns(UserWarning, match="they stay in memory"):
        part = assemble(config)
    assert cached(part) == [True] + 11 * [False]
    state = full.model.start("random", 1)
    for a, b in zip(full.clients, part.clients, strict=True):
        losses = [scoring.loss(w.model, state, c.held_out, 4) for w, c in ((full, a), (part, b))]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        scores = [scoring.option_scores(w.model, state, c.test[0], config) for w, c in ((full, a), (part, b))]
        assert all(one.argmax() == other.argmax() for one, other in zip(*scores, strict=True))
    assembly._build.cache_clear()


def test_questions_are_read_at_their_last_tokens_where_the_model_reads_packed_batches(decoder):
    config = agreeing(decoder)
    federation = assemble(config)
    packed = packs(federation.model.backbone.model, 1)  # not before transformers 5
    assert [bool(part.last) for c in federation.clients for part in (c.train, c.held_out, *c.test)] == [packed] * 12
    assert packed == GIVEN
    if packed:
        assemble(config.but(engine="last_token"))
    else:
        with pytest.raises(ConfigError, match="transformers 5"):
            assemble(config.but(engine="last_token"))


# ---- the union ------------------------------------------------------------------------------------------------------


def test_the_union_is_a_sample_of_all_clients_tests():
    federation = assemble(small(union_size=8))
    asked = [sequence.ids for sequence in federation.union[0].sequences]
    assert len(set(asked)) == 8 and len(federation.union[0].gold) == 8
    every = [{sequence.ids for sequence in client.test[0].sequences} for client in federation.clients]
    assert [sum(ids in those for ids in asked) for those in every] == [2, 2, 2, 2]
    assert assemble(small()).union == ()


@pytest.mark.parametrize("layers", ["0-1", "2-3"], ids=["not cached", "cached"])
def test_the_union_asks_what_the_clients_are_asked(layers):
    config = small(union_size=20, layers=layers)
    federation = assemble(config)
    state = federation.model.start("random", 1)
    each = [scoring.correct(federation.model, state, client.test[0], config)[0] for client in federation.clients]
    assert torch.equal(scoring.correct(federation.model, state, federation.union[0], config)[0], torch.cat(each))
    assert federation.union[0].tasks == [task for client in federation.clients for task in client.test[0].tasks]


def test_a_union_that_is_asked_for_more_than_there_is_takes_every_question_once():
    (union,) = assemble(small(union_size=50)).union
    assert len({sequence.ids for sequence in union.sequences}) == len(union) == 20


# ---- what cannot be -------------------------------------------------------------------------------------------------


def test_an_encoder_cannot_answer_commonsense_questions_and_says_so():
    with pytest.raises(DataError, match="needs a causal language model"):
        assemble(small(backbone="tiny-roberta"))


@pytest.mark.parametrize("layers", ["2-4", [7]])
def test_layers_that_the_model_does_not_have_are_refused(layers):
    with pytest.raises(ConfigError, match="from 0 to 3"):
        assemble(small(layers=layers))


def test_a_federation_of_one_is_possible_where_nothing_is_exchanged():
    for method in ("local", "centralised"):
        done = run(small(method=method, clients=1, tasks=["piqa"], rounds=1), progress=False)
        assert len(done.states) == 1


def test_an_empty_option_in_ones_own_data_is_no_crash():
    federation = assemble(small())
    Reader(federation.model, small(), caches=False).tests([Question("piqa", "", "open a jar", ("", "twist"), 1)])
