"""benchmark="agreement" in a federation: each client's labels follow its own rule on what the frozen model sees."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from fedreft_lib import RunConfig
from fedreft_lib.data import agreement, render
from fedreft_lib.data.partition import SPLITS
from fedreft_lib.data.synthetic import make_questions
from fedreft_lib.errors import ConfigError, DataError
from fedreft_lib.federation import labelling, pool
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.federation.dealing import counted, partition_of, texts_of
from fedreft_lib.model.backbone import load_backbone
from fedreft_lib.model.steered import SteeredModel
from fedreft_lib.model.ways import Ways
from tests.helpers.federations import agreeing, finish
from tests.helpers.models import saved_decoder

NEAR = 1e-4  # scores so near the median that rounding may decide on which side they are; all have variance 1


def answers(clients):
    """For each client, what it answers to its texts."""
    return [{q.question: q.choices[q.gold] for split in SPLITS for q in getattr(client, split)} for client in clients]


def scores_by_hand(config):
    """Each client's score of each text: the plain model on one prompt after another, and eigenvectors."""
    model = AutoModelForCausalLM.from_pretrained(config.backbone)
    tok, found = load_backbone(config.backbone, dtype="float32").tokenizer, {}
    for text in texts_of(config):
        ids = tok(render(text.labelled(False), config.prompt_format).prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states  # after the embeddings, then after each block
        found[text.question] = hidden[-2][0, -1].double().numpy()  # hidden[-1] has passed the last norm, too
    h = np.stack(list(found.values()))
    h -= h.mean(0)
    variances, directions = np.linalg.eigh(h.T @ h / len(h))
    directions = directions[:, ::-1][:, :12]
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(12)])
    e = h @ directions / np.sqrt(variances[::-1][:12])
    scores = e @ agreement.rules(config.clients, config.agreement, config.seed).T
    return dict(zip(found, scores - np.median(scores, 0), strict=True))


def test_labels_are_those_of_the_plain_models_hidden_states(decoder):
    config = agreeing(decoder, train_size=60, test_size=40, clients=3)
    scores = scores_by_hand(config)
    compared = 0
    for k, said in enumerate(answers(partition_of(config))):
        for question, answer in said.items():
            if abs(scores[question][k]) > NEAR:
                assert answer == ("yes" if scores[question][k] > 0 else "no")
                compared += 1
    assert compared > 290  # of 3 x 104


def test_two_clients_agree_on_the_texts_as_asked_and_the_shared_rule_is_as_good_as_said(decoder):
    for share in (0.5, 0.7, 1.0):
        config = agreeing(decoder, agreement=share)
        texts = texts_of(config)
        e, w = labelling.seen(texts, config), agreement.rules(4, share, config.seed)
        y = agreement.labels(e, w)
        assert len(texts) == 600 and y.sum(0).tolist() == [300] * 4
        np.testing.assert_allclose(np.cov(e.T, bias=True), np.eye(12), atol=1e-8)
        assert agreement.share_agreed(y) == pytest.approx(share, abs=0.06)  # these states are not Gaussian
        assert agreement.shared_accuracy(y, e, w) == pytest.approx(agreement.optimum(share, 4), abs=6)
        assert counted(config) == (100 * agreement.share_agreed(y), agreement.shared_accuracy(y, e, w))


# ---- what labels depend on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"method": "fedavg"}, {"method": "fedit", "intervention": "lora"}, {"intervention": "direft"}, {"layers": [1]},
    {"layers": "all"}, {"rank": 3}, {"positions": "f2+l2"}, {"engine": "one_by_one"}, {"sampled": 2},
    {"objective": "answer"}, {"scoring": "likelihood_per_character"}, {"union_size": 4},
], ids=str)  # fmt: skip
def test_labels_do_not_depend_on_what_is_trained(decoder, change):
    base, config = agreeing(decoder), agreeing(decoder, **change)
    assert answers(partition_of(config)) == answers(partition_of(base))
    assert [c.fingerprint for c in partition_of(config)] == [c.fingerprint for c in partition_of(base)]


def test_a_text_has_one_label_for_a_client_whatever_the_sizes_and_the_setup(decoder):
    base = answers(partition_of(agreeing(decoder, train_size=75, test_size=60)))
    shared = 0
    for change in ({"train_size": 50}, {"test_size": 60}, {"setup": "distinct"}, {"held_out_size": 20}):
        for said, known in zip(answers(partition_of(agreeing(decoder, **change))), base, strict=True):
            both = said.keys() & known.keys()
            assert {q: said[q] for q in both} == {q: known[q] for q in both}
            shared += len(both)
    assert shared > 150


def test_labels_depend_on_the_agreement_and_the_backbone(decoder, tmp_path):
    base = agreeing(decoder, train_size=75)
    known = answers(partition_of(base))[0]
    other = saved_decoder(tmp_path, initializer_range=0.3)
    for config in (base.but(agreement=0.9), base.but(backbone=other)):
        said = answers(partition_of(config))[0]
        assert said.keys() == known.keys() and any(said[q] != known[q] for q in said)


def test_labels_are_made_anew_where_the_backbones_files_change_under_one_name(tmp_path):
    config = agreeing(saved_decoder(tmp_path))
    before = answers(partition_of(config))
    saved_decoder(tmp_path, initializer_range=0.3)
    after = answers(partition_of(config))
    assert before != after and [x.keys() for x in before] == [x.keys() for x in after]


@pytest.mark.parametrize("setup", ["distinct", "mixed", "iid", "dirichlet"])
def test_every_setup_deals_and_labels_and_one_clients_part_is_that_of_all(decoder, setup):
    config = agreeing(decoder, setup=setup, tasks=("piqa", "siqa"))
    clients = partition_of(config)
    assert [len(c.train) for c in clients] == [16] * 4 and [len(c.test) for c in clients] == [10] * 4
    for k in (0, 3):
        alone = partition_of(config, only=k)
        assert alone[k] == clients[k] and not any(alone[j].train for j in range(4) if j != k)
    if setup == "distinct":
        assert [{q.task for q in c.train} for c in clients] == [{"piqa"}, {"siqa"}, {"piqa"}, {"siqa"}]


def test_hostile_clients_train_on_the_other_label_and_are_tested_on_their_own(decoder):
    config = agreeing(decoder)
    flipped = partition_of(config.but(attack="label_flip", hostile=1))
    for k, (one, other) in enumerate(zip(partition_of(config), flipped, strict=True)):
        wrong = [a.gold != b.gold for a, b in zip(one.train, other.train, strict=True)]
        assert all(wrong) if k == 3 else not any(wrong)
        assert one.test == other.test and one.held_out == other.held_out


# ---- sources --------------------------------------------------------------------------------------------------------


def test_the_hubs_questions_are_labelled_like_others(decoder, monkeypatch):
    asked = []

    def hub(task, split):
        asked.append((task, split))
        return make_questions(task, split, seed=0)

    monkeypatch.setattr("fedreft_lib.data.commonsense_sources.load_hub", hub)
    config = agreeing(decoder)
    assert answers(partition_of(config.but(source="hub"))) == answers(partition_of(config))
    assert {split for _, split in asked} == {"train", "test"}


def test_ones_own_texts_are_labelled_whatever_their_answers(decoder, tmp_path):
    rows = [{"prompt": f"Write of the red sea, day {i}: {'so' * (i % 7)}", "response": "It is."} for i in range(100)]
    quiz = [{"question": f"Which is number {i}?", "choices": ["one", "two"], "gold": i % 2} for i in range(100)]
    for name, own in (("diary", rows), ("quiz", quiz)):
        for split, part in (("train", own[:60]), ("test", own[60:])):
            (tmp_path / f"{name}_{split}.json").write_text(json.dumps(part), encoding="utf-8")
    config = agreeing(decoder, source="local", data_dir=str(tmp_path), tasks=("diary", "quiz"), test_size=6)
    clients = partition_of(config)
    assert {q.choices for c in clients for q in (*c.train, *c.test)} == {("no", "yes")}
    done = finish(config)
    assert done.manifest["engine"] in ("last_token", "one_by_one", "cohort") and len(done.accuracy()) == 4


# ---- what cannot be -------------------------------------------------------------------------------------------------


def test_dealing_of_ones_own_is_refused():
    with pytest.raises(ConfigError, match='benchmark="agreement" deals texts and labels them: use another setup'):
        RunConfig(benchmark="agreement", setup="own", source="local", data_dir="x", tasks=("mine",))


def test_a_model_that_cannot_start_in_the_middle_is_refused_in_one_sentence(tmp_path):
    two = saved_decoder(tmp_path, num_hidden_layers=2)
    for backbone, layers in ((two, [1]), ("tiny-roberta", "2-3")):
        with pytest.raises(ConfigError, match=r"by a hidden state of a decoder like LLaMA .* is none$"):
            assemble(agreeing(backbone, layers=layers))


@pytest.mark.parametrize("sizes", [{"train_size": 200}, {"test_size": 200}, {"clients": 40}, {"held_out_size": 300}])
def test_more_texts_than_there_are_are_refused(decoder, sizes):
    with pytest.raises(DataError, match=r"clients need \d+ (training|test) questions of .* but there are \d+"):
        partition_of(agreeing(decoder, **sizes))


def test_texts_that_are_too_alike_are_refused(decoder, tmp_path):
    for split, days in (("train", range(7)), ("test", range(7, 12))):
        rows = [{"question": f"Which day is it, {i}?", "choices": ["a", "b"], "gold": 0} for i in days]
        (tmp_path / f"days_{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    config = agreeing(decoder, source="local", data_dir=str(tmp_path), tasks=("days",), clients=2, train_size=2)
    with pytest.raises(ConfigError, match="these 12 differ in fewer"):
        partition_of(config.but(held_out_size=1, test_size=2))


@pytest.mark.parametrize("layout", ["apart", "alone"])
def test_labels_are_the_same_where_options_are_read_apart(decoder, monkeypatch, layout):
    config = agreeing(decoder)
    texts = texts_of(config)
    together = labelling.seen(texts, config)
    forget = labelling._seen.cache_clear, pool.pool_of.cache_clear
    for each in forget:
        each()
    with monkeypatch.context() as patched:
        patched.setattr(SteeredModel, "ways", lambda *args, **more: Ways(layout))
        np.testing.assert_allclose(labelling.seen(texts, config), together, atol=1e-3)
    for each in forget:
        each()


def test_a_model_with_a_window_labels_texts_too(tmp_path):
    """In bfloat16 the options of a text longer than the window are read apart."""
    backbone = saved_decoder(tmp_path, MistralConfig, sliding_window=16)
    exact, rounded = (agreeing(backbone, dtype=dtype) for dtype in ("float32", "bfloat16"))
    y = [agreement.labels(labelling.seen(texts_of(c), c), agreement.rules(4, 0.7, 0)) for c in (exact, rounded)]
    assert str(assemble(rounded).model.ways(64)) != "fast"
    assert (y[0] == y[1]).mean() > 0.85  # rounding to eight bits turns a few
