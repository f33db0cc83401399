"""Grading of answers: numbers and letters, words, classification metrics, ROUGE-L, styles."""
