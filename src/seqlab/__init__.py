"""A training template for sequence models. Importing the package itself imports nothing heavy."""

from importlib import import_module

_MODULES = {
    "seqlab.model": ("LSTM", "GRU", "LSTMNetwork", "GRUNetwork"),
    "seqlab.objectives": ("Objective", "Values", "Classes"),
    "seqlab.data": ("SequenceData",),
    "seqlab.tasks": ("Task",),
    "seqlab.learner": ("Learner",),
    "seqlab.engine.forecaster": ("load",),
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str):
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'seqlab' has no attribute {name!r}")
