"""Ratios of one run against floors far below the figures in benchmarks/, as a loaded machine may
double any of them."""

import sys

import pytest
from program import ROOT

sys.path.append(str(ROOT / "benchmarks"))

pytestmark = pytest.mark.slow


def test_a_small_network_trains_about_as_fast_as_by_hand_and_faster_than_usual(monkeypatch):
    import overhead

    monkeypatch.setenv("TERM", "xterm-256color")
    (rates,) = overhead.measure_rounds("reference", "cpu", rounds=1, epochs=1)
    assert rates["ours"] > 1.5 * rates["(b) Lightning"]
    assert rates["ours"] > 0.6 * rates["(a) PyTorch loop"]
    assert rates["ours"] > 0.4 * rates["(c) bare limit"]


def test_the_guards_cost_little():
    import guards

    assert sorted(guards.measure(3))[1] < 1.3
