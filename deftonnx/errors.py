"""Errors that carry the command line's exit code. Each message is one sentence naming the file, node or option."""

from __future__ import annotations


class DeftError(Exception):
    """Anything that went wrong for a reason the user can act on."""

    exit_code = 1


class UsageError(DeftError):
    """An option, argument or input file that cannot be used as given."""

    exit_code = 2


class AccuracyError(DeftError):
    """The accuracy budget was missed."""

    exit_code = 3


class UnchangedError(DeftError):
    """Nothing was improved and the caller asked to be told."""

    exit_code = 4


class UnsupportedError(DeftError):
    """A model or environment that this version cannot work with."""

    exit_code = 5
