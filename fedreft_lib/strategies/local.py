"""Local: every client trains alone; the lower line that a federation has to beat."""

from .base import Strategy

LOCAL = Strategy("local", aggregate=None)
