"""A training template for sequence models. Importing the package itself imports nothing heavy."""

__all__ = ["load"]


def __getattr__(name: str):
    if name == "load":
        from seqlab.checkpoint import load

        return load
    raise AttributeError(f"module 'seqlab' has no attribute {name!r}")
