"""Errors that speak to the person at the keyboard.

Every error that a user can cause is a `FedReFTError` whose text is one sentence: what was given, what was
expected, what to do. The command line prints the sentence alone; a traceback is left for our own mistakes.
"""


class FedReFTError(Exception):
    """Something that the user can put right; the message says how."""


class ConfigError(FedReFTError, ValueError):
    """A parameter that does not exist, has the wrong type or is out of its range."""


class AssetError(FedReFTError):
    """Packaged weights or data that could not be fetched, verified or converted."""


class DataError(FedReFTError, ValueError):
    """A dataset that is missing, malformed, or shares examples where it must not."""
