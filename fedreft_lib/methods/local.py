"""Local: every client trains alone; the lower line that a federation has to beat."""

from .method import Method

LOCAL = Method("local", aggregate=None)
