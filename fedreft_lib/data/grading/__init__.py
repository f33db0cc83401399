"""How answers are graded: numbers and letters, words, metrics of classification, ROUGE-L, styles."""
