"""Config -> objects: the only caller of ``hydra.utils.instantiate``, and where siblings are wired to each other.

Names are looked up when they are used: whoever only wants ``instantiate`` does not wait for Lightning, transformers and the models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate

if TYPE_CHECKING:
    from coordvlm.build.experiment import Experiment, build_experiment, first_batches, token_budget
    from coordvlm.build.model import Model, build_coords, build_grammar, build_model, task_of
    from coordvlm.build.trainer import SUPPLIED, build_trainer, callback, csv_log, findings

_MODULES = {
    "experiment": ("Experiment", "build_experiment", "first_batches", "token_budget"),
    "model": ("Model", "build_coords", "build_grammar", "build_model", "task_of"),
    "trainer": ("SUPPLIED", "build_trainer", "callback", "csv_log", "findings"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SUPPLIED", "Experiment", "Model", "build_coords", "build_experiment", "build_grammar", "build_model", "build_trainer", "callback",
    "csv_log", "findings", "first_batches", "instantiate", "task_of", "token_budget",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
