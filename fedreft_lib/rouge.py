"""ROUGE-L: how much of a reference a generated text says, in the same order (Lin 2004, aclanthology.org/W04-1013)."""


def rouge_l(prediction: str, reference: str) -> float:
    """The F-measure in percent: 2 P R / (P + R), where P and R are LCS / words of the prediction and of the reference.

    LCS is the longest common subsequence of words; words are runs of a to z and 0 to 9 in lower case, without stemming.
    torchmetrics counts; it gives what Google's rouge_score gives, and needs no nltk. An empty text scores 0.
    """
    from torchmetrics.functional.text.rouge import rouge_score  # 1 to 2 s to import, and only free text needs it

    return 100 * float(rouge_score(prediction, reference, rouge_keys="rougeL")["rougeL_fmeasure"])
