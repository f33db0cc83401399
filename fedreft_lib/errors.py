"""Errors for the user.

Every error that a user can cause is a `FedReFTError` whose text is one sentence: what was given, what was expected,
what to do. The command line prints this sentence alone; a traceback means a mistake in the library.
"""

import difflib
from collections.abc import Iterable


class FedReFTError(Exception):
    """Something that the user can fix; the message says how."""


class ConfigError(FedReFTError, ValueError):
    """A parameter that does not exist, has a wrong type, is out of range, or does not go with another one."""


class AssetError(FedReFTError):
    """Packaged weights or data that could not be fetched, verified or converted."""


class DataError(FedReFTError, ValueError):
    """A dataset that is missing, malformed, or shares examples where it must not."""


class NoFileError(DataError):
    """A file of a dataset that does not exist."""


class DamageWarning(UserWarning):
    """Something was damaged. An earlier state is used, or it is computed again; the message says which."""


class ElsewhereWarning(UserWarning):
    """A result was made with other code, packages or hardware than here; the message says with which."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a sentence about an unknown name: the nearest known name, or all of them.

    otherwise: a text in place of a list that would be long.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f", did you mean {near[0]!r}?"
    return f"; {otherwise}" if otherwise else f"; there are {', '.join(known) or 'none'}"
