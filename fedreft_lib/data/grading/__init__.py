"""Grading of answers: numbers and letters, words, classification metrics, calibration, ROUGE-L, styles."""
