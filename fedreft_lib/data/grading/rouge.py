"""ROUGE-L: how much of a reference a generated text says, in the same order (Lin 2004, aclanthology.org/W04-1013)."""

from .words import words


def rouge_l(prediction: str, reference: str) -> float:
    """The F-measure in percent: 2 P R / (P + R), where P and R are LCS / words of the prediction and of the reference.

    LCS is the longest common subsequence of words, without stemming. torchmetrics counts, and needs no nltk for it; the
    words are ours, since its own (and those of Google's rouge_score) are runs of a to z and 0 to 9, of which a text in
    another script has none, and "café" is the word "caf". See `words` for what a word is. Where all letters and digits
    are ASCII, the value is exactly theirs. A text without words (also "" and "...") scores 0.
    """
    from torchmetrics.functional.text.rouge import rouge_score  # 1 to 2 s to import, and only free text needs it

    found = rouge_score(prediction, reference, rouge_keys="rougeL", normalizer=str, tokenizer=words)
    return 100 * float(found["rougeL_fmeasure"])
