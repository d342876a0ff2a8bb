"""Errors a user can cause. Messages name the file, line or id, the value and the rule that was broken."""

from __future__ import annotations


class CoordVLMError(ValueError):
    """Base of every error that a user's input can cause; commands print it without a traceback."""


def user_error(error: BaseException) -> CoordVLMError | None:
    """The error of ours at or beneath ``error``: Hydra wraps what a constructor raises."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, CoordVLMError):
            return current
        current = current.__cause__
    return None


class DataError(CoordVLMError):
    """Broken training or evaluation data.

    Args:
        rule: what must hold, in words.
        where: file, line or id at which it does not.
        value: the offending value, shown with ``repr``.
    """

    def __init__(self, rule: str, *, where: object, value: object = ...) -> None:
        self.rule, self.where, self.value = rule, str(where), value
        shown = "" if value is ... else f": got {value!r}"
        super().__init__(f"{self.where}: {rule}{shown}")

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:  # crosses worker processes
        return _rebuild_data_error, (self.rule, self.where, self.value is ..., None if self.value is ... else self.value)


def _rebuild_data_error(rule: str, where: str, no_value: bool, value: object) -> DataError:
    return DataError(rule, where=where) if no_value else DataError(rule, where=where, value=value)


class ConfigError(CoordVLMError):
    """A configuration that cannot mean what it says."""


class ContractError(CoordVLMError):
    """A checkpoint, a model and a config that disagree on what a coordinate means."""


class NonFiniteLossError(CoordVLMError):
    """A loss term became NaN or infinite; raised before the optimiser step."""
