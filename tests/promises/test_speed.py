"""Ratios of one run against floors far below the figures in benchmarks/, as a loaded machine may
double any of them. Of several rounds in turn each side's best counts: load only ever slows."""

import sys

import pytest
import torch
from program import ROOT

sys.path.append(str(ROOT / "benchmarks"))

pytestmark = pytest.mark.slow


def test_a_small_network_trains_about_as_fast_as_by_hand_and_faster_than_usual(monkeypatch):
    import overhead

    monkeypatch.setenv("TERM", "xterm-256color")
    rounds = overhead.measure_rounds("reference", "cpu", rounds=5)
    rates = {name: max(rates[name] for rates in rounds) for name in rounds[0]}
    assert rates["ours"] > 1.5 * rates["(b) Lightning"]
    assert rates["ours"] > 0.6 * rates["(a) PyTorch loop"]
    assert rates["ours"] > 0.4 * rates["(c) bare limit"]


def test_the_guards_cost_little():
    import guards

    with_guards, without = guards.measure(5)
    assert min(with_guards) < 1.3 * min(without)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps freed memory, others may not")
def test_a_large_step_takes_the_memory_of_the_one_before():
    import resource

    from seqlab.engine.build import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    lstm, x = torch.nn.LSTM(1, 256, 2, batch_first=True), torch.randn(64, 100, 1)
    faults = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        lstm(x)[0].sum().backward()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[-1] < 2000  # 40,000 where it is given back and comes again
