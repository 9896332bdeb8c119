"""The errors of `evaluators`: each message is one line that names the value, the bound and the mend."""

from __future__ import annotations


class EvaluationError(Exception):
    """Anything that stops a model from being exported, checked, scored or measured."""


class RigError(EvaluationError):
    """A model or a request that a rig cannot measure."""


class RigUnavailable(RigError):
    """A rig that does not exist, or that this machine or version cannot offer."""


class ExportError(EvaluationError):
    """A module that cannot be written as an ONNX file."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The message of an error as one line: whitespace squeezed, cut at `limit` characters."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
