"""ROUGE-L: how many words a generated text shares with a reference, in order (Lin 2004, aclanthology.org/W04-1013)."""

from .words import words


def rouge_l(prediction: str, reference: str) -> float:
    """The F-measure in percent: 2 P R / (P + R), where P and R are LCS / words of the prediction and of the reference.

    LCS is the longest common subsequence of words, without stemming. torchmetrics counts it and needs no nltk for that.
    The words are ours (see `words`): for torchmetrics and Google's rouge_score a word is a run of a to z and 0 to 9, so
    other scripts have none, and "café" becomes "caf". If all letters and digits are ASCII, the value equals theirs
    exactly. A text without words (also "" and "...") scores 0.
    """
    from torchmetrics.functional.text.rouge import rouge_score  # 1 to 2 s to import, and only free text needs it

    found = rouge_score(prediction, reference, rouge_keys="rougeL", normalizer=str, tokenizer=words)
    return 100 * float(found["rougeL_fmeasure"])
