"""Tokenizers of the kinds that models have, each learned from a few sentences, so that nothing is downloaded."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "Question: which colour has the sea?\nAnswer: blue", "the red fox is able to answer any question unable",
    "water is under the red and blue sky, and the answer is able", "a question has an answer: yes, no, red, able\n",
] * 3  # fmt: skip
SPECIAL = ["<unk>", "<bos>", "<eos>", "<pad>"]
FRAMES = {"nothing": "$A", "bos": "<bos> $A", "bos and eos": "<bos> $A <eos>", "eos": "$A <eos>"}
KINDS = ("bytes", "words", "unigram", "llama-2", "python")


@cache
def learned(kind: str) -> Tokenizer:
    if kind == "bytes":  # GPT-2, LLaMA-3, Qwen, SmolLM
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    elif kind == "words":  # BERT
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    elif kind == "unigram":  # T5, XLM-RoBERTa
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        made.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:  # LLaMA-2: no pieces, a blank before every text
        made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # for learning alone
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    if kind == "llama-2":
        made.pre_tokenizer = None
    return made


def tokenizer(kind: str, frame: str = "bos"):
    """A tokenizer of one of KINDS that puts a text into one of FRAMES."""
    if kind == "python":
        return Letters(FRAMES[frame])
    made = Tokenizer.from_str(learned(kind).to_str())
    made.post_processor = processors.TemplateProcessing(
        single=FRAMES[frame],
        pair=f"{FRAMES[frame]} $B:1 <eos>:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("<bos>", "<eos>")],
    )
    named = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **named)


class Letters(PreTrainedTokenizer):
    """A slow tokenizer, in Python: a letter is a token. Which tokens it has added it does not say."""

    def __init__(self, frame: str = "$A"):
        self.frame, self.letters = frame, {chr(i): i for i in range(4, 256)}
        special = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
        super().__init__(**special, clean_up_tokenization_spaces=False)

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {**{token: i for i, token in enumerate(SPECIAL)}, **self.letters}

    def _tokenize(self, text: str, **how) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return SPECIAL[index] if index < len(SPECIAL) else chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        before, after = ([SPECIAL.index(x) for x in part.split()] for part in self.frame.split("$A"))
        return [*before, *token_ids_0, *after]
