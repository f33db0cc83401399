"""λ live computes what the library computes, once, for the newest move; and says in a sentence what it cannot do."""

import asyncio
import json

import pytest
import torch

from fedreft_lib import all_but_me, mean, retract, run
from fedreft_lib.core.mixing import mix
from fedreft_lib.errors import FedReFTError
from fedreft_lib.model import scoring
from fedreft_lib.workbook import live, remix
from tests.helpers.federations import GLUE, finish, small

LOCAL = {"method": "local", "rounds": 1, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def local():
    return finish(small(**LOCAL))


@pytest.fixture
def mixer(local):
    return remix.Remix(local)


def loss_of(mixer, row, k):
    model, client = mixer.model, mixer.clients[k]
    return scoring.loss(model, model.spec.named(row), client.held_out, mixer.config.batch_size)


# ---- what is computed -----------------------------------------------------------------------------------------------


def test_lam_0_is_the_clients_own_state_and_text(mixer, local):
    for k, row in enumerate(local.states):
        own = mixer.model.spec.named(row)
        for rule in ("mean", "geometric_median"):
            assert all(torch.allclose(mixer.state(rule, 0.0, k)[name], own[name], atol=1e-5) for name in own)
            assert mixer.loss(rule, 0.0, k) == pytest.approx(loss_of(mixer, row, k), abs=1e-4)
            text = mixer.model.generate([mixer.read("Why is snow white?")], own, 4)[0]
            assert mixer.text(rule, 0.0, k, "Why is snow white?") == text


@pytest.mark.parametrize("rule", ["mean", "geometric_median"])
def test_a_state_is_the_mixture_with_the_others(mixer, local, rule):
    A = all_but_me(local.states, rule).A
    for lam in (0.3, 1.0):
        mixed = mix(local.states, A, lam)
        for k in range(len(mixed)):
            expected, found = mixer.model.spec.named(mixed[k]), mixer.state(rule, lam, k)
            for name in expected:
                turned = retract(expected[name], local.config.retraction) if name == "R" else expected[name]
                assert torch.allclose(found[name], turned, atol=1e-5)
        assert torch.allclose(mixer.weights(rule, lam).sum(1), torch.ones(len(mixed)))
        assert torch.allclose(mixer.weights(rule, lam).diagonal(), torch.full((len(mixed),), 1 - lam))


def test_fedavg_is_the_weighted_mean_of_all_at_any_lam_and_mean_abm_at_its_own():
    done = finish(small(**LOCAL, setup="dirichlet", alpha=0.3, clients=3, train_size=12))
    mixer = remix.Remix(done)
    counts = torch.tensor([len(client.train) for client in mixer.clients], dtype=torch.float32)
    W = mixer.model.spec.named(mean(done.states, counts).aggregate[0])["W"]
    assert all(torch.allclose(mixer.state("fedavg", lam, k)["W"], W, atol=1e-6) for lam in (0.0, 0.7) for k in (0, 2))
    assert mixer.loss("fedavg", 0.0, 1) == mixer.loss("fedavg", 0.7, 1)
    if counts.unique().numel() == 1:
        assert mixer.loss("mean", 2 / 3, 1) == pytest.approx(mixer.loss("fedavg", 0.0, 1), abs=1e-4)


def test_what_is_known_is_not_computed_again(mixer, monkeypatch):
    first = mixer.loss("mean", 0.5, 0), mixer.text("mean", 0.5, 0, "Why?")
    monkeypatch.setattr(remix, "apply_answer", None)  # no state can be made from here on
    assert (mixer.loss("mean", 0.5, 0), mixer.text("mean", 0.5, 0, "Why?")) == first
    with pytest.raises(TypeError):
        mixer.text("mean", 0.5, 0, "Another?")


def test_a_private_head_and_what_a_method_does_not_send_stay_the_clients_own():
    glue = remix.Remix(finish(small(**GLUE, head="private", rounds=1)))
    own = glue.model.spec.named(glue.run.states[0])
    after = glue.state("mean", 1.0, 0)
    assert torch.equal(after["head.C"], own["head.C"]) and not torch.equal(after["W"], own["W"])
    fedsa = remix.Remix(finish(small(method="fedsa", intervention="lora", rounds=1)))
    own = fedsa.model.spec.named(fedsa.run.states[0])
    assert torch.equal(fedsa.state("mean", 1.0, 0)["q_proj.B"], own["q_proj.B"])
    assert fedsa.all_equal


def test_a_prompt_that_is_too_long_keeps_its_end(mixer):
    read = mixer.read("word " * 5000 + "the end?")
    assert len(read.ids) == mixer.config.max_length and read.cut[0] > 4000
    assert "the end?" in mixer.model.backbone.tokenizer.decode(read.ids)


@pytest.mark.parametrize("changes", [{"method": "fedalt"}, {"method": "tuned"}, {"method": "centralised"}])
def test_a_run_without_a_mixed_state_is_refused_in_a_sentence(changes):
    assert remix.refusal(small(**changes)).endswith("choose a run of local, FedAvg or FedReFT.")


# ---- the widget -----------------------------------------------------------------------------------------------------


def watched(done, *moves, patient=False):
    """The widget after some moves, in a loop as in a kernel; and the task of each. patient: each waits for the last."""

    async def play():
        widget = live.Live(remix.Remix(done))
        tasks = []
        for move in moves:
            for name, value in move.items():
                getattr(widget, name).value = value
            await asyncio.sleep(0)
            tasks.append(widget.task)
            if patient:
                await widget.task
        await widget.task
        return widget, tasks

    return asyncio.run(play())


def test_a_move_ends_the_one_before(local):
    widget, (first, second) = watched(local, {"lam": 0.5}, {"lam": 1.0})
    assert first.cancelled() and not second.cancelled() and second.exception() is None
    assert set(widget.remix.losses["geometric_median", 3]) == {1.0}  # the first never came to the last client


def test_the_cards_show_texts_losses_and_weights_of_every_client(local):
    widget, _ = watched(local, {"rule": "mean", "lam": 0.3, "prompt": "Why <b>?"})
    for k, card in enumerate(widget.cards):
        assert f"held-out loss {widget.remix.loss('mean', 0.3, k):.3f} nats a token" in card.value
        assert widget.remix.clients[k].name in card.value and "0.70" in card.value and "waits" not in card.value
        assert widget.texts[k] == widget.remix.text("mean", 0.3, k, "Why <b>?")
    assert widget.curves.value.count("<circle") == 4 and "Why <b>" not in widget.note.value


def test_curves_fill_with_each_visit_and_fedavg_is_a_level(local):
    widget, _ = watched(local, {"prompt": ""}, {"lam": 0.5}, {"lam": 1.0}, {"rule": "fedavg"}, patient=True)
    assert widget.curves.value.count("stroke-dasharray") == 4 and widget.lam.disabled
    assert "λ does nothing here" in widget.note.value and "Type a question" in widget.note.value
    widget, _ = watched(local, {"prompt": ""}, {"lam": 0.5}, patient=True)
    assert widget.curves.value.count("<circle") == 8


def test_an_encoder_has_no_prompt_and_a_bad_prompt_is_said_in_a_sentence(local):
    widget, _ = watched(finish(small(**GLUE, rounds=1)), {"lam": 0.5})
    assert widget.prompt not in widget.box.children and "writes no texts" in widget.note.value
    assert "nats a text" in widget.cards[0].value and 'class="text"' not in widget.cards[0].value
    widget, _ = watched(local, {"prompt": "word " * 3000})
    assert "Your prompt is too long by" in widget.note.value


def test_nothing_is_computed_before_a_browser_shows_it(local):
    async def made():
        widget = live.Live(remix.Remix(local))
        await asyncio.sleep(0.2)
        assert widget.task is None and not widget.remix.losses
        widget.seen.value = 1  # as the browser's link does
        await asyncio.sleep(0)
        await widget.task
        assert len(widget.remix.losses) == 4

    asyncio.run(made())


def test_a_refusal_and_a_missing_run_are_sentences_in_the_notebook(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(live, "display", lambda output: shown.append(output.data))
    live.mixing(finish(small(method="centralised", rounds=1)))
    live.page(tmp_path)
    assert "has one state" in shown[0] and "run the notebook 04_instruction" in shown[1] and len(shown) == 2


def test_newest_takes_the_newest_finished_run_that_writes(tmp_path):
    writes = {**LOCAL, "benchmark": "instruction", "tasks": ("tale", "card"), "clients": 2}
    for name, changes in {"quick/runs/a": writes, "smoke/runs/b": LOCAL, "quick/runs/c": {"method": "fedalt"}}.items():
        run(small(**{**changes, "rounds": 1}), tmp_path / name, progress=False)
    (tmp_path / "quick/runs/d").mkdir()
    for name, text in (("manifest.json", json.dumps({"round": 1})), ("config.json", '{"of": "another version"}')):
        (tmp_path / "quick/runs/d" / name).write_text(text)
    assert live.newest(tmp_path).folder == tmp_path / "quick/runs/a"
    manifest = tmp_path / "quick/runs/a/manifest.json"
    manifest.write_text(manifest.read_text().replace('"round": 1', '"round": 0'))
    assert live.newest(tmp_path).folder == tmp_path / "smoke/runs/b"
    with pytest.raises(FedReFTError, match="no finished run"):
        live.newest(tmp_path / "quick/runs")
