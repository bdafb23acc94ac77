"""Train a network: `python train.py model.n_hidden=4`. The keys are the files under conf/."""

import gc
import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from seqlab.engine.context import RunContext, as_typed
from seqlab.engine.errors import one_line_errors, outlive_readers
from seqlab.engine.multirun import forget_empty_sweep
from seqlab.engine.runs import register_resolvers
from seqlab.engine.usage import usage

register_resolvers()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    # torch reads this when it is imported, for threads that it starts itself
    os.environ.setdefault("OMP_NUM_THREADS", str(cfg.threads))
    if "torch" not in sys.modules:  # imported only now, when the config is known to be sound
        # half a million objects that stay: the garbage collector need not visit them
        gc.disable()
        import seqlab.training  # noqa: F401

        gc.freeze()
        gc.enable()
    from seqlab.training import train

    with one_line_errors():  # here too: Hydra adds lines to what leaves this function
        return train(cfg, RunContext.of_hydra())


if __name__ == "__main__":
    outlive_readers()
    conf = Path(__file__).parent.resolve() / "conf"
    with one_line_errors(conf, tidy_up=forget_empty_sweep):
        sys.argv[1:] = as_typed(sys.argv[1:], conf)
        if {"-h", "--help"} & set(sys.argv):
            print(usage(conf, sys.argv[1:]), end="")
        else:
            main()
