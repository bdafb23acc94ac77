"""A training template for sequence models. Importing the package itself imports nothing heavy."""

from importlib import import_module

_HOME = {
    "LSTM": "seqlab.model",
    "GRU": "seqlab.model",
    "LSTMNetwork": "seqlab.model",
    "GRUNetwork": "seqlab.model",
    "Objective": "seqlab.objectives",
    "Values": "seqlab.objectives",
    "Classes": "seqlab.objectives",
    "SequenceData": "seqlab.data",
    "Task": "seqlab.tasks",
    "Learner": "seqlab.learner",
    "load": "seqlab.engine.forecaster",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'seqlab' has no attribute {name!r}")
