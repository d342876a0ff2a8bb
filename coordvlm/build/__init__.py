"""Config -> objects: the only caller of ``hydra.utils.instantiate``, and where siblings are wired to each other."""

from hydra.utils import instantiate

from coordvlm.build.experiment import Experiment, build_experiment, first_batches, token_budget
from coordvlm.build.model import Model, build_coords, build_grammar, build_model, task_of
from coordvlm.build.trainer import SUPPLIED, build_trainer, callback, csv_log

__all__ = [
    "SUPPLIED", "Experiment", "Model", "build_coords", "build_experiment", "build_grammar", "build_model", "build_trainer", "callback",
    "csv_log", "first_batches", "instantiate", "task_of", "token_budget",
]
