"""Errors that speak to the person at the keyboard.

Every error that a user can cause is a `FedReFTError` whose text is one sentence: what was given, what was
expected, what to do. The command line prints the sentence alone; a traceback is left for our own mistakes.
"""

import difflib
from collections.abc import Iterable


class FedReFTError(Exception):
    """Something that the user can put right; the message says how."""


class ConfigError(FedReFTError, ValueError):
    """A parameter that does not exist, has the wrong type or is out of its range."""


class AssetError(FedReFTError):
    """Packaged weights or data that could not be fetched, verified or converted."""


class DataError(FedReFTError, ValueError):
    """A dataset that is missing, malformed, or shares examples where it must not."""


class NoFileError(DataError):
    """A file of a dataset that is not there."""


class DamageWarning(UserWarning):
    """Something was damaged and the last good state is used instead; the message says which."""


class ElsewhereWarning(UserWarning):
    """A result was made with other code or another stack than the one here; the message says with which."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a sentence about a name that does not exist: the nearest that does, or all of them.

    otherwise: what to say in place of a list that would be long.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f", did you mean {near[0]!r}?"
    return f"; {otherwise}" if otherwise else f"; there are {', '.join(known) or 'none'}"
