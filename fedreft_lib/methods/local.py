"""Local: every client trains alone. A federation has to score higher than this."""

from .method import Method

LOCAL = Method("local", aggregate=None)
