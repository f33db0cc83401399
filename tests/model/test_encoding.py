"""What is read is what was asked: the joint text's tokens, of a prompt that is too long its end, and nothing unsaid."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from fedreft_lib.errors import ConfigError, DataError, FedReFTError
from fedreft_lib.model.tokens import encode, encode_pair
from tests.helpers.tokenizers import FRAMES, KINDS, tokenizer

EVERY = [(kind, frame) for kind in KINDS for frame in FRAMES]
BOS, EOS = 1, 2
known = cache(tokenizer)
WORDS = ["the", " red", " sea", "\n", " ", "un", "able", ":", " answer", "?", "  ", " Fuchs", "é", "water"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map("".join).filter(str.strip)


def own(tok, text: str) -> tuple[int, ...]:
    return tuple(tok(text, add_special_tokens=False).input_ids)


def parts(sequence) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The prompt's tokens, and those of each answer."""
    asked = sequence.ids[: sequence.prompt_length]
    assert sequence.ids == (*asked, *(token for answer in sequence.answers for token in answer))
    assert tuple(map(len, sequence.answers)) == sequence.answer_lengths
    return asked, sequence.answers


# ---- the tokens of a joint text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "frame"), EVERY)
def test_a_prompt_and_an_option_have_the_tokens_of_the_joint_text(kind, frame):
    tok, prompt, options = tokenizer(kind, frame), "Question: is the sea red?\nAnswer:", [" no", " red", " the sea"]
    asked, answers = parts(encode(tok, prompt, options, max_length=200))
    for option, answer in zip(options, answers, strict=True):
        assert (*asked, *answer) == (*([BOS] if "bos" in frame else []), *own(tok, prompt + option))


def test_an_option_of_llama_2s_kind_is_one_token_where_it_is_one_in_the_joint_text():
    tok = tokenizer("llama-2")
    assert tok.tokenize(" red") == ["▁", "▁red"]
    _, (answer,) = parts(encode(tok, "The fox is", [" red"], max_length=50))
    assert tok.convert_ids_to_tokens(answer) == ["▁red"]


def test_an_answer_after_a_line_break_gets_no_blank_that_the_text_has_not():
    tok, prompt, answer = tokenizer("llama-2"), "the answer is:\n", "able"
    found = encode(tok, prompt, [answer], max_length=50)
    assert tok.decode(found.ids, skip_special_tokens=True) == prompt + answer


def test_where_the_split_is_inside_a_token_the_answer_is_read_apart_and_the_prompt_is_the_same_for_all():
    tok = tokenizer("llama-2")
    assert tok.tokenize("unable") == ["▁unable"]
    asked, answers = parts(encode(tok, "un", ["able", " red"], max_length=50))
    assert asked == (BOS, *own(tok, "un"))
    assert answers == [own(tok, "able"), own(tok, "un red")[len(own(tok, "un")) :]]


@pytest.mark.parametrize("frame", ["bos and eos", "eos"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_tokenizer_puts_after_a_text_ends_no_prompt(kind, frame):
    tok = tokenizer(kind, frame)
    assert tok("the sea").input_ids[-1] == EOS
    assert EOS not in encode(tok, "the sea", [" red"], max_length=50).ids
    assert EOS not in encode(tok, "the sea", [], max_length=50).ids
    asked, answers = parts(encode(tok, "the sea", [" is red", " is"], max_length=50, end=True))
    assert EOS not in asked and all(answer[-1] == EOS and EOS not in answer[:-1] for answer in answers)


def test_a_tokenizer_in_python_that_ends_each_text_is_understood():
    tok = ByT5Tokenizer(extra_ids=0, clean_up_tokenization_spaces=False)
    assert tok("ab").input_ids[-1] == tok.eos_token_id
    found = encode(tok, "ab", ["cd", "e"], max_length=50)
    assert tok.decode(found.ids) == "abcde" and found.answer_lengths == (2, 1)


def test_a_tokenizer_whose_settings_are_changed_is_asked_again():
    tok = tokenizer("python", "nothing")
    assert encode(tok, "the", [], max_length=50).ids == own(tok, "the")
    tok.add_bos_token, tok.frame = True, FRAMES["bos"]
    assert encode(tok, "the", [], max_length=50).ids == (BOS, *own(tok, "the"))


# ---- what does not fit ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(EVERY), TEXTS, st.lists(TEXTS, max_size=3), st.integers(8, 64), st.booleans())
def test_the_prompt_keeps_its_front_and_its_end_and_an_answer_its_beginning(which, prompt, answers, max_length, end):
    tok, front = known(*which), (BOS,) if "bos" in which[1] else ()
    found = encode(tok, prompt, answers, max_length=max_length, end=end)
    asked, read = parts(found)
    whole_prompt, whole = parts(encode(tok, prompt, answers, max_length=10**6, end=end))

    assert found.reach <= max_length
    assert len(asked) >= min(len(whole_prompt), max_length / 2)
    body, n = whole_prompt[len(front) :], len(asked) - len(front)
    assert asked == (*front, *body[len(body) - n :]) and n > 0
    for short, long in zip(read, whole, strict=True):
        assert short == long[: len(short)]
        assert len(short) == min(len(long), max_length - len(asked))  # no more is lost than has to be
    lost = [len(long) - len(short) for short, long in zip([asked, *read], [whole_prompt, *whole], strict=True)]
    assert found.cut == tuple(lost)
    if len(whole_prompt) + max(map(len, whole), default=0) <= max_length:
        assert not any(lost)


def test_a_long_response_leaves_the_prompt_and_loses_its_end_with_the_end_token():
    tok = tokenizer("python", "nothing")
    found = encode(tok, "?", ["x" * 400], max_length=64, end=True)  # 402 tokens, one of them the prompt's
    assert found.prompt_length == 1 and found.answer_lengths == (63,)
    assert tok.decode(found.ids) == "?" + 63 * "x" and found.cut == (0, 338)
    found = encode(tok, "0123456789" * 10, ["x" * 400], max_length=64, end=True)
    assert tok.decode(found.ids) == ("0123456789" * 10)[-32:] + 32 * "x" and found.cut == (68, 369)


def test_an_option_that_loses_its_end_is_counted_and_the_others_are_whole():
    tok = tokenizer("python", "nothing")
    found = encode(tok, "0123456789" * 3, ["a" * 20, "b" * 5, "c" * 8], max_length=16)
    assert found.prompt_length == 8 and found.answer_lengths == (8, 5, 8) and found.cut == (22, 12, 0, 0)


def test_a_text_that_only_loses_its_end_token_is_counted_too():
    found = encode(tokenizer("python", "nothing"), "0123456789", ["x" * 8], max_length=16, end=True)
    assert found.answer_lengths == (8,) and EOS not in found.ids and found.cut == (2, 1)


def test_special_tokens_that_fill_the_room_are_one_sentence():
    tok = tokenizer("python", "nothing")
    tok.frame, tok.add_bos_token = 8 * "<bos> " + "$A", True
    assert encode(tok, "?", [" a"], max_length=16).prompt_length == 9  # it fits
    with pytest.raises(ConfigError, match="max_length=16 is filled by 8 special tokens before the text; raise it"):
        encode(tok, "0123456789", [" abcdefgh"], max_length=16)


def test_a_prompt_or_an_answer_without_tokens_is_one_sentence():
    tok = tokenizer("words")
    with pytest.raises(DataError, match="the answer ' ' has no tokens"):
        encode(tok, "red or not?", [" red", " "], max_length=50)
    assert encode(tok, "red or not?", [""], max_length=50, end=True).answer_lengths == (1,)  # it ends at once
    with pytest.raises(DataError, match="the prompt '' has no tokens"):
        encode(tokenizer("bytes", "nothing"), "", ["red"], max_length=50)


def test_a_tokenizer_without_an_end_token_is_one_sentence_where_a_text_has_to_end():
    tok = tokenizer("bytes")
    tok.eos_token = None
    with pytest.raises(FedReFTError, match="has no end token"):
        encode(tok, "red?", [" yes"], max_length=50, end=True)
    encode(tok, "red?", [" yes"], max_length=50)
    encode(tok, "red?", [], max_length=50, end=True)


# ---- an encoder's texts ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(TEXTS, st.just("") | TEXTS, st.integers(8, 40))
def test_the_texts_of_a_pair_are_cut_as_their_tokenizer_cuts_them_and_what_is_lost_is_counted(a, b, max_length):
    tok = known("words", "bos and eos")
    pair = (b,) if b else ()
    whole, found = tok(a, *pair), encode_pair(tok, a, b, max_length=max_length)
    cut = tok(a, *pair, truncation=True, max_length=max_length, return_token_type_ids=True)
    assert found.ids == tuple(cut.input_ids) and found.segments == tuple(cut.token_type_ids)
    assert found.prompt_length == len(found.ids) <= max_length
    assert found.cut == (len(whole.input_ids) - len(found.ids),)
