"""What did not fit into max_length is counted for each client, told once, kept with the run and shown with results."""

import json
from itertools import count

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from fedreft_lib import RunConfig, load_run, run
from fedreft_lib.data import cuts, render
from fedreft_lib.errors import ConfigError, DataError
from fedreft_lib.federation import assembly
from fedreft_lib.federation.assembly import assemble
from fedreft_lib.workbook import tables
from tests.helpers.tokenizers import tokenizer

SHORT = "How is it?"
NUMBERS = count(1000)


def written(folder, rows_of_client, file="mine"):
    """Files of each client's own: {"train": rows, "test": rows}."""
    for k, rows in enumerate(rows_of_client, 1):
        for split, items in rows.items():
            path = folder / f"client{k}" / f"{file}_{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(items), encoding="utf-8")
    return str(folder)


def own(folder, rows_of_client, **changes) -> RunConfig:
    fields = dict(
        backbone="tiny-llama", source="local", setup="own", tasks=["mine"], data_dir=written(folder, rows_of_client),
        clients=len(rows_of_client), train_size=4, held_out_size=2, test_size=3, batch_size=2, rounds=1, local_steps=1,
        rank=2, layers="2-3", max_length=64, max_new_tokens=4,
    )  # fmt: skip
    return RunConfig(**{**fields, **changes})


def question(i: int, *, long=False, option=1) -> dict:
    asked = f"{i} {'very ' * 20 * long}{SHORT}"
    return {"question": asked, "choices": ["x" * option + str(i), "no"], "answer": 0}


def exchange(i: int, *, long=False, response=1) -> dict:
    return {"instruction": f"{i} {'very ' * 20 * long}{SHORT}", "output": "x" * response}


def labelled(i: int, *, long=False) -> dict:
    return {"text_a": f"{i} {'very ' * 20 * long}{SHORT}", "label": i % 2}


def splits(make, long_train=0, long_test=0, **changes) -> dict:
    """Items that no other client has, of which the first few are long."""
    train = [make(next(NUMBERS), long=i < long_train, **changes) for i in range(6)]
    return {"train": train, "test": [make(next(NUMBERS), long=i < long_test, **changes) for i in range(3)]}


# ---- counting -------------------------------------------------------------------------------------------------------


def test_prompts_that_lost_their_beginning_are_counted_by_client_and_split_and_no_others_are(
    tmp_path,
):
    config = own(tmp_path, [splits(question), splits(question, 6, 2)])
    assert assemble(config).cut == {
        "client2-mine": {"train": {"prompts": 4}, "held_out": {"prompts": 2}, "test": {"prompts": 2}}
    }


def test_what_is_counted_is_what_the_texts_are_longer_than_max_length(tmp_path):
    config = own(tmp_path, [splits(question, 3, 1, option=20), splits(question, 1, 3, option=40)])
    federation = assemble(config)
    for client, data in zip(federation.clients, federation.questions, strict=True):
        for split in ("train", "held_out", "test"):
            prompts = answers = 0
            for item in getattr(data, split):
                example = render(item, "plain")
                read = example.options if split == "test" else [example.options[item.gold]]
                longest = max(map(len, read))  # a byte is a token
                kept = min(len(example.prompt), max(64 - longest, 32))
                prompts += kept < len(example.prompt)
                answers += sum(len(option) > 64 - kept for option in read)
            counts = {name: n for name, n in (("prompts", prompts), ("answers", answers)) if n}
            assert client.cut.get(split, {}) == counts
    assert all(client.cut for client in federation.clients)


def test_responses_that_lost_their_end_are_counted(tmp_path):
    config = own(tmp_path, [splits(exchange, response=100), splits(exchange)], benchmark="instruction", max_length=80)
    assert assemble(config).cut == {
        "client1-mine": {"train": {"answers": 4}, "held_out": {"answers": 2}, "test": {"answers": 3}}
    }


def test_what_is_written_does_not_depend_on_the_length_of_the_right_response(tmp_path):
    """A prompt makes room for a response that is read, and not where another one is to be written."""
    found = {}
    for response in (1, 60):
        rows = {"train": [exchange(i) for i in range(20, 40)], "test": [exchange(7, long=True, response=response)]}
        config = own(tmp_path / str(response), [rows], test_size=1, method="local")
        (found[response],) = assemble(config).clients[0].test
    assert found[1].prompts == found[60].prompts and len(found[1].prompts[0].ids) == config.max_length
    assert found[60].sequences[0].prompt_length == 32 < found[1].sequences[0].prompt_length


def test_of_an_option_that_lost_its_end_the_likelihood_is_that_of_the_characters_that_are_read(tmp_path):
    federation = assemble(own(tmp_path, [splits(question, option=60), splits(question)]))
    for client in federation.clients:
        (test,) = client.test
        for sequence, characters in zip(test.sequences, test.characters, strict=True):
            assert characters.tolist() == [n - 1 for n in sequence.answer_lengths]  # a byte is a token; " " counts not
    assert [any(s.cut[1:]) for client in federation.clients for s in client.test[0].sequences] == [True] * 3 + [
        False
    ] * 3


def test_an_encoders_texts_that_lost_their_end_are_counted(tmp_path):
    config = own(
        tmp_path, [splits(labelled, 6), splits(labelled)], benchmark="glue", backbone="tiny-roberta", positions="f2",
    )  # fmt: skip
    assert assemble(config).cut == {"client1-mine": {"train": {"texts": 4}, "held_out": {"texts": 2}}}


# ---- telling --------------------------------------------------------------------------------------------------------


def test_it_is_said_once_when_the_data_are_read_and_kept_with_the_run(tmp_path, capsys):
    config = own(tmp_path / "data", [splits(question, 6, 2), splits(question)])
    assembly._build.cache_clear()
    done = run(config, tmp_path / "run", progress=False)
    said = "Not all texts fit into max_length=64: train: 4 prompts lost their beginning; held_out: 2 prompts"
    assert capsys.readouterr().out.count(said) == 1
    expected = {"client1-mine": {"train": {"prompts": 4}, "held_out": {"prompts": 2}, "test": {"prompts": 2}}}
    assert done.cut == load_run(tmp_path / "run").cut == expected
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["cut"] == expected


def test_results_are_shown_with_one_sentence_where_anything_was_cut_and_with_none_elsewhere(tmp_path, capsys):
    whole = run(own(tmp_path / "whole", [splits(question), splits(question)]), progress=False)
    assert "max_length" not in capsys.readouterr().out
    cut = run(
        own(tmp_path / "cut", [splits(question, 6, 2, option=40) for _ in range(2)], max_length=32), progress=False
    )
    assert tables.cut_notes([whole]) == tables.cut_notes([]) == []
    (said,) = tables.cut_notes([whole, cut])
    assert said == (
        f"Not all texts fit into max_length in 1 of 2 runs; most were cut in {cut.config.run_id} (max_length=32; "
        f"{cuts.in_words(cut.cut)})."
    )
    assert "test: 6 prompts lost their beginning, 6 answers lost their end" in said


def test_a_run_that_was_kept_before_anything_was_counted_says_nothing(tmp_path):
    done = run(own(tmp_path, [splits(question, 6), splits(question)]), progress=False)
    done.manifest.pop("cut")
    assert done.cut == {} and tables.cut_notes([done]) == []


# ---- refused before any training ------------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 3,
}


def folder_with(tmp_path, model, tok) -> str:
    model.save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_text_with_a_token_that_the_model_has_no_embedding_of_is_one_sentence(tmp_path):
    tok = tokenizer("bytes", "nothing")
    size = len(tok)
    tok.add_tokens(["very"])
    backbone = folder_with(tmp_path, LlamaForCausalLM(LlamaConfig(vocab_size=size, **SIZES)), tok)
    data = [splits(question), splits(question, 2)]
    with pytest.raises(DataError, match=rf"mine: .* has embeddings of {size} tokens, .* token {size} \('very'\)"):
        assemble(own(tmp_path / "data", data, backbone=backbone))
    assemble(own(tmp_path / "fine", [splits(question), splits(question)], backbone=backbone))


@pytest.mark.parametrize("kind", ["texts", "generated responses", "generated answers"])
def test_a_text_that_is_longer_than_the_models_positions_is_one_sentence(tmp_path, kind):
    if kind == "texts":
        tok, make, written_after, changes = tokenizer("bytes", "bos and eos"), labelled, 0, {"benchmark": "glue"}
        model = RobertaModel(RobertaConfig(vocab_size=len(tok), **SIZES, max_position_embeddings=40))
    else:
        tok, make, written_after, changes = tokenizer("bytes", "nothing"), exchange, 4, {"benchmark": "instruction"}
        if kind == "generated answers":
            changes = {"scoring": "generation", "prompt_format": "llm_adapters"}
            make = question
        ends = {"bos_token_id": None, "eos_token_id": tok.eos_token_id}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), n_embd=32, n_layer=4, n_head=4, n_positions=36, **ends))
    most, positions = 36, "f2" if kind == "texts" else "f1+l1"
    changes |= {"backbone": folder_with(tmp_path, model, tok), "positions": positions}
    data = [splits(make, 6, 3), splits(make, 6, 3)]
    fits = own(tmp_path / "data", data, max_length=most - written_after, **changes)
    assemble(fits)
    with pytest.raises(ConfigError, match=f"has positions for {most} tokens, and here are texts of"):
        assemble(fits.but(max_length=most + 1))


def test_a_text_that_is_longer_than_rotary_positions_were_made_for_is_read_and_that_is_said(tmp_path, capsys):
    tok = tokenizer("bytes", "nothing")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), **SIZES, max_position_embeddings=40))
    data, backbone = [splits(question, 1), splits(question)], folder_with(tmp_path, model, tok)
    assemble(own(tmp_path / "data", data, backbone=backbone))
    assert "was made for texts of 40 tokens, and reads some of up to 64 here" in capsys.readouterr().out
