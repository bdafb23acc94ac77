import itertools

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, FillBetweenPolyCollection
from matplotlib.text import Text

from seqlab.watch.figures import (
    against_keys,
    answers_over_time,
    confusion,
    last_forecasts,
    prediction_against_target,
    states_over_time,
    unrolled,
)

RNG = np.random.default_rng(0)


def sequence(T, L, H, F):
    """Inputs (T, F), and STM and LTM (T, L, H) in the ranges an LSTM gives."""
    x_TF = RNG.normal(size=(T, F)).astype(np.float32)
    ltm_TLH = 3 * RNG.normal(size=(T, L, H)).astype(np.float32)
    return x_TF, np.tanh(ltm_TLH) / 2, ltm_TLH


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def words(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def heat_maps(figure):
    return {axes.get_title(): axes.images[0] for axes in figure.axes if axes.images}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture(autouse=True)
def no_pyplot_figure():
    yield
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.parametrize("O", [1, 3])
def test_legend_gives_the_mse_over_all_outputs(O):
    target_BO = RNG.normal(size=(50, O))
    prediction_BO, baseline_BO = target_BO + 0.5, target_BO.copy()
    baseline_BO[:, -1] += 3
    figure = drawn(prediction_against_target(target_BO, prediction_BO, baseline_BO, "last value"))
    assert {"network, MSE 0.25", f"last value, MSE {9 / O:.3g}"} <= set(legend(figure))
    parity, lines = figure.axes
    assert ("all 3 outputs pooled" in parity.get_title()) == (O == 3)
    assert lines.get_title() == "first 40 of 50 cases" + (", output 1 of 3" if O == 3 else "")
    by_label = {line.get_label(): line.get_ydata() for line in lines.lines}
    np.testing.assert_array_equal(by_label["target"], target_BO[:40, 0])
    np.testing.assert_array_equal(by_label["network, MSE 0.25"], prediction_BO[:40, 0])
    # no line joins cases that have nothing to do with one another, and each kind has its mark
    assert {line.get_linestyle() for line in lines.lines} == {"None"}
    assert len({line.get_marker() for line in lines.lines}) == 3


def test_diagonal_covers_every_point_on_equal_axes():
    target_BO = RNG.normal(size=(30, 2))
    figure = drawn(prediction_against_target(target_BO, 4 * target_BO + 7, -9 * target_BO))
    parity = figure.axes[0]
    (diagonal,) = parity.lines
    low, high = parity.get_xlim()
    assert parity.get_ylim() == (low, high)
    assert parity.get_aspect() == 1
    np.testing.assert_array_equal(diagonal.get_xydata(), [(low, low), (high, high)])
    points = np.concatenate([c.get_offsets() for c in parity.collections])
    assert len(points) == 2 * target_BO.size
    assert low < points.min()
    assert points.max() < high


def test_many_points_are_thinned_the_same_way_each_time_and_the_mse_is_not():
    target_BO = RNG.normal(size=(3000, 2))
    prediction_BO = target_BO + RNG.normal(size=target_BO.shape)
    figures = [prediction_against_target(target_BO, prediction_BO) for _ in range(2)]
    first, second = [figure.axes[0].collections[0].get_offsets() for figure in figures]
    np.testing.assert_array_equal(first, second)
    pairs = set(zip(target_BO.ravel(), prediction_BO.ravel(), strict=True))
    assert len(first) == 2000
    assert len({tuple(point) for point in first} & pairs) == 2000
    # Both outputs are among those drawn.
    assert 800 < np.isin(first[:, 0], target_BO[:, 0]).sum() < 1200
    assert figures[0].axes[0].get_title().endswith("2000 of 6000 points")
    assert f"network, MSE {np.mean((prediction_BO - target_BO) ** 2):.3g}" in legend(figures[0])


def test_a_prediction_that_would_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"network has shape \(10, 1\), target \(10, 2\)"):
        prediction_against_target(np.zeros((10, 2)), np.zeros((10, 1)))


def test_a_diverged_network_is_still_drawn():
    x_TF, stm_TLH, _ = sequence(3, 2, 4, 5)
    target_BO = RNG.normal(size=(9, 1))
    figure = drawn(
        prediction_against_target(target_BO, np.full((9, 1), np.nan), target_BO + np.inf)
    )
    assert {"network, MSE nan", "baseline, MSE inf"} <= set(legend(figure))
    low, high = figure.axes[0].get_xlim()
    assert low < target_BO.min() < target_BO.max() < high
    ltm_TLH = np.full_like(stm_TLH, np.inf)
    ltm_TLH[0, 0, :2] = (-5, np.nan)
    figure = drawn(states_over_time(x_TF, stm_TLH * np.nan, ltm_TLH))
    assert heat_maps(figure)["LTM (c), layer 1"].get_clim() == (-5, 5)
    drawn(unrolled(x_TF, stm_TLH * np.nan, [np.nan], [0.5]))


def test_constant_target_still_has_room():
    parity = drawn(prediction_against_target(np.full((5, 1), 1e9), np.full((5, 1), 1e9))).axes[0]
    assert parity.get_xlim()[0] < 1e9 < parity.get_xlim()[1]


@pytest.mark.parametrize(("T", "L", "H", "F"), [(3, 2, 4, 5), (24, 1, 32, 1), (1, 3, 1, 1)])
def test_states_are_the_heat_maps(T, L, H, F):
    x_TF, stm_TLH, ltm_TLH = sequence(T, L, H, F)
    figure = drawn(states_over_time(x_TF, stm_TLH, ltm_TLH))
    maps = heat_maps(figure)
    assert len(maps) == 2 * L
    largest = np.abs(ltm_TLH).max()
    for name, state_TLH, bound in [("STM (h)", stm_TLH, 1), ("LTM (c)", ltm_TLH, largest)]:
        for layer in range(L):
            image = maps[f"{name}, layer {layer + 1}"]
            # Units run down, time to the right, and unit 1 of step 1 is the top left pixel.
            np.testing.assert_array_equal(image.get_array(), state_TLH[:, layer].T)
            assert image.get_extent() == [0.5, T + 0.5, H + 0.5, 0.5]
            assert image.get_clim() == pytest.approx((-bound, bound))
            np.testing.assert_allclose(image.cmap(image.norm(0.0))[:3], 0.97, atol=0.01)
    inputs = [axes for axes in figure.axes if axes.get_title() == f"inputs x (F = {F})"]
    assert len(inputs) == 2
    for axes in inputs:
        assert axes.get_xlim() == (0.5, T + 0.5)
        np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], x_TF.T)


def test_the_colour_bars_have_round_numbers_at_their_ticks():
    x_TF, stm_TLH, ltm_TLH = sequence(6, 2, 8, 3)
    figure = drawn(states_over_time(x_TF, stm_TLH, 2.37 * ltm_TLH / np.abs(ltm_TLH).max()))
    bars = [axes for axes in figure.axes if not axes.get_title()]
    low_high = [bar.get_ylim() for bar in bars]
    ticks = [
        [tick for tick in bar.get_yticks() if low <= tick <= high]
        for bar, (low, high) in zip(bars, low_high, strict=True)
    ]
    assert ticks == [[-1, -0.5, 0, 0.5, 1], [-2, -1, 0, 1, 2]]


def test_a_confusion_matrix_counts_the_answers_to_each_class():
    target_N = np.array([0, 0, 0, 2, 2, 1, np.nan])
    figure = drawn(confusion(target_N, np.array([0, 0, 2, 2, 2, 0, 1]), 4))
    axes = figure.axes[0]
    expected_CC = np.array([[2, 0, 1, 0], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]])
    written = {text.get_position(): text.get_text() for text in axes.texts}
    places = {(int(c), int(r)): str(expected_CC[r, c]) for r, c in np.argwhere(expected_CC)}
    assert written == places
    shares_CC = expected_CC / np.array([[3], [1], [2], [1]])
    np.testing.assert_allclose(axes.images[0].get_array(), shares_CC)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "target")
    assert axes.get_title() == "4 of 6 targets right"
    # class 0 stands at the top left
    assert axes.get_ylim() == (3.5, -0.5)


@pytest.mark.parametrize(("C", "n_written"), [(2, 2), (30, 30), (31, 0)])
def test_up_to_30_classes_every_class_has_its_number_and_every_count_its_room(C, n_written):
    classes_N = np.repeat(np.arange(C), 1234).astype(float)
    axes = drawn(confusion(classes_N, classes_N, C)).axes[0]
    assert len(axes.texts) == n_written
    labels = {text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    assert (labels >= set(map(str, range(C)))) == (C <= 30)
    assert all(float(label.replace("\N{MINUS SIGN}", "-")).is_integer() for label in labels)
    boxes = [text.get_window_extent() for text in axes.texts]
    boxes += [text.get_window_extent() for text in axes.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("numeric", [False, True])
def test_answers_stand_over_the_targets_of_their_steps(numeric):
    target_T = np.array([1, 0, np.nan, 6, np.nan])
    axes = drawn(figure := answers_over_time(target_T, np.array([1, 2, 3, 4, 5]), numeric)).axes[0]
    target, answer = axes.lines
    np.testing.assert_array_equal(target.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(target.get_ydata(), target_T)
    np.testing.assert_array_equal(answer.get_ydata(), [1, 2, np.nan, 4, np.nan])
    assert {line.get_linestyle() for line in axes.lines} == {"-" if numeric else "None"}
    assert [patch.get_x() + 0.5 for patch in axes.patches] == [3, 5]
    assert legend(figure) == ["target", "prediction", "no target"]
    assert axes.get_xlabel() == "time step"
    # the mask leaves the scale alone, on which every mark has room
    assert axes.get_ylim()[0] < 0 < 6 < axes.get_ylim()[1] < 7
    assert all(float(text.get_text()).is_integer() for text in axes.get_xticklabels())


def test_a_sequence_with_all_its_targets_has_no_mask():
    figure = drawn(answers_over_time(np.zeros(3), np.ones(3), False))
    assert legend(figure) == ["target", "prediction"]
    assert not figure.axes[0].patches


def test_without_ltm_only_the_stm_column_is_drawn():
    x_TF, stm_TLH, _ = sequence(6, 2, 8, 3)
    figure = drawn(states_over_time(x_TF, stm_TLH))
    assert list(heat_maps(figure)) == ["STM (h), layer 1", "STM (h), layer 2"]


def test_states_of_other_shapes_are_refused():
    x_TF, stm_TLH, ltm_TLH = sequence(6, 2, 8, 3)
    with pytest.raises(ValueError, match=r"LTM \(c\) has shape \(5, 2, 8\), expected \(6, 2, 8\)"):
        states_over_time(x_TF, stm_TLH, ltm_TLH[1:])
    with pytest.raises(ValueError, match=r"STM \(6, 2, 8\): not the same T"):
        unrolled(x_TF[1:], stm_TLH, [0.0])


SIZES = [(3, 2, 4, 5, 1), (24, 2, 32, 1, 1), (1, 1, 1, 1, 1), (1, 4, 64, 8, 7), (7, 3, 6, 2, 3)]


@pytest.mark.parametrize(("T", "L", "H", "F", "O"), SIZES)
def test_every_node_has_the_colour_of_its_activation(T, L, H, F, O):
    x_TF, stm_TLH, _ = sequence(T, L, H, F)
    figure = drawn(unrolled(x_TF, stm_TLH, np.zeros(O), np.ones(O)))
    (nodes,) = figure.findobj(EllipseCollection)
    shown = stm_TLH[-12:, :, :16]
    assert nodes.get_clim() == (-1, 1)
    expected = matplotlib.colormaps["RdBu_r"]((shown.ravel() + 1) / 2)
    np.testing.assert_allclose(nodes.get_facecolors(), expected, atol=0.01)

    # Where they stand: steps to the right, layers up, no two in one place.
    x, y = nodes.get_offsets().reshape(*shown.shape, 2).transpose(3, 0, 1, 2)
    assert np.all(x[1:].min((1, 2)) > x[:-1].max((1, 2)))
    assert np.all(y[:, 1:].min((0, 2)) > y[:, :-1].max((0, 2)))
    units = nodes.get_offsets()[: shown.shape[2]]
    apart = [np.hypot(*(a - b)) for a, b in itertools.combinations(units, 2)]
    assert min(apart, default=np.inf) > nodes.get_widths()[0]


@pytest.mark.parametrize(("T", "L", "H", "F", "O"), SIZES)
def test_no_text_overlaps_another_or_leaves_the_figure(T, L, H, F, O, monkeypatch):
    x_TF, stm_TLH, ltm_TLH = sequence(T, L, H, F)
    draw, boxes = Text.draw, {}

    def note_where(text, renderer):
        # Only what is drawn: an axis also keeps labels for ticks outside its limits.
        draw(text, renderer)
        if text.get_visible() and text.get_text():
            boxes[text] = text.get_window_extent(renderer)

    monkeypatch.setattr(Text, "draw", note_where)
    for figure in (
        unrolled(x_TF, stm_TLH, np.full(O, -1234.5), np.full(O, 67.89)),
        states_over_time(1000 * x_TF, stm_TLH, 100 * ltm_TLH),
    ):
        boxes.clear()
        drawn(figure)
        assert len(boxes) > 10
        for text, box in boxes.items():
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
        for (a, a_box), (b, b_box) in itertools.combinations(boxes.items(), 2):
            assert not a_box.overlaps(b_box), (a, b)


def test_what_is_left_out_is_said():
    x_TF, stm_TLH, _ = sequence(24, 2, 64, 8)
    said = words(unrolled(x_TF, stm_TLH, np.zeros(7)))
    assert (
        "steps 13 to 24 of 24, first 16 of 64 units, first 5 of 8 inputs, first 4 of 7 outputs"
        in said
    )
    assert [word for word in said if word.startswith("t = ")] == [f"t = {t}" for t in range(13, 25)]
    assert "of step 12" in said
    assert "initial" not in said


def test_the_reference_sizes_are_drawn_whole_with_their_numbers():
    x_TF, stm_TLH, _ = sequence(3, 2, 4, 5)
    said = words(unrolled(x_TF, stm_TLH, [0.534], [-0.001]))
    assert not any("first" in word or " of " in word for word in said)
    for value in stm_TLH.ravel():
        assert f"{value:z.2f}" in said
    for x_F in x_TF:
        assert "\n".join(f"{value:z.2f}" for value in x_F) in said
    assert {"prediction 0.53", "target 0.00", "initial", "layer 1", "layer 2"} <= set(said)
    for once in ("(STM, LTM)", "prediction = head(stm[-1])", "Linear"):
        assert said.count(once) == 1


def test_arrows_join_every_layer_to_the_next_and_every_step_to_the_next():
    x_TF, stm_TLH, _ = sequence(3, 2, 4, 5)
    (quiver,) = unrolled(x_TF, stm_TLH, [0.0]).findobj(matplotlib.quiver.Quiver)
    right, up = (quiver.U > 0) & (quiver.V == 0), (quiver.U == 0) & (quiver.V > 0)
    assert right.sum() == 3 * 2  # into each step of each layer
    assert up.sum() == 3 * 2 + 2  # into each layer of each step, into the head, out of it
    assert len(quiver.U) == right.sum() + up.sum()


def test_without_target_or_ltm():
    x_TF, stm_TLH, _ = sequence(3, 2, 4, 5)
    said = words(unrolled(x_TF, stm_TLH, [0.5], carried="STM"))
    assert not any("target" in word or "LTM" in word for word in said)


@pytest.mark.parametrize("O", [1, 3])
def test_the_last_forecasts_follow_the_history(O):
    days, values_N = np.datetime64("2024-02-01") + np.arange(20), RNG.normal(size=20)
    rows_KO = 8 + np.arange(12).reshape(-1, O)
    guesses = {"AR(4), test RMSE 1": values_N[rows_KO] + 1, "network": values_N[rows_KO] - 1}
    low_O, high_O = np.arange(1.0, O + 1), np.arange(2.0, O + 2)
    after = days[-1] + 1 + np.arange(2), np.array([3.0, 4])
    around = guesses["network"], np.pad(after[1], (0, 3))[:O]
    reach = tuple(np.stack([middle - low_O, middle + high_O]) for middle in around)
    panels = [
        ("first", days, values_N, rows_KO, guesses, None, None),
        ("last", days, values_N, rows_KO, guesses, reach, after),
        ("new", days, values_N, rows_KO[:0], {}, reach, after),  # the history alone
    ]
    figure = drawn(last_forecasts(panels, "co2", "date", "0.9"))
    first, last, new = figure.axes
    assert (first.get_title(), last.get_title()) == ("co2, first", "co2, last")
    assert (first.get_ylabel(), new.get_xlabel()) == ("co2", "date")
    names = ["history", "truth", *guesses]
    more = ["0.9 interval", "network, after the end"]
    found = {text.get_text() for text in last.get_legend().get_texts()}
    assert found == {*names, *more}
    assert {text.get_text() for text in new.get_legend().get_texts()} == {"history", *more}
    for axis in (last, new):
        (end,) = (line for line in axis.lines if line.get_label() == more[1])
        np.testing.assert_array_equal(end.get_xdata(orig=True), after[0])
        np.testing.assert_array_equal(end.get_ydata(), after[1])
        # shaded: around the network's forecasts and, of several steps, around those after the end
        shaded = [band for band in axis.collections if isinstance(band, FillBetweenPolyCollection)]
        middles = [*guesses["network"], after[1]] if O > 1 else [guesses["network"].ravel()]
        middles = middles if axis is last else middles[-1:] * (O > 1)
        for band, middle in zip(shaded, middles, strict=True):
            heights = band.get_paths()[0].vertices[:, 1]
            few = slice(len(middle))
            assert heights.min() == pytest.approx((middle - low_O[few]).min())
            assert heights.max() == pytest.approx((middle + high_O[few]).max())
        # around a single one it is a bar
        bars = [each for each in axis.collections if each not in shaded]
        assert len(bars) == (O == 1)
        for bar in bars:
            low, high = bar.get_segments()[0][:, 1]
            assert (low, high) == (after[1][0] - low_O[0], after[1][0] + high_O[0])
    assert [text.get_text() for text in first.get_legend().get_texts()] == names
    history, truth, *forecasts = first.lines
    np.testing.assert_array_equal(history.get_xdata(orig=True), days[:9])
    np.testing.assert_array_equal(truth.get_xdata(orig=True), days[8:])
    # one line for forecasts of one step, and for those of several a line for each window
    n_lines = 1 if O == 1 else len(rows_KO)
    assert len(forecasts) == 2 * n_lines
    for (name, guess_KO), start in zip(guesses.items(), (0, n_lines), strict=True):
        lines = forecasts[start : start + n_lines]
        assert lines[0].get_label() == name
        got = np.concatenate([line.get_ydata() for line in lines])
        np.testing.assert_array_equal(got, guess_KO.ravel())
        got = np.concatenate([line.get_xdata(orig=True) for line in lines])
        np.testing.assert_array_equal(got, days[8:])
    assert any("2024" in word for word in words(figure))


def runs(*values):
    """A run for each value of `key`, the second without a metric."""
    metrics = [1.0, None, *range(2, len(values))]
    pairs = enumerate(zip(values, metrics, strict=False))
    return [{"key": v, "best": metric, "folder": f"run{i}"} for i, (v, metric) in pairs]


def ticks(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def test_the_metric_is_drawn_over_a_few_numbers_each_with_its_tick():
    (axes,) = drawn(against_keys(runs("8", "2", "128", "16"), ["key"])).axes
    assert axes.collections[0].get_offsets().tolist() == [[8, 1], [128, 2], [16, 3]]
    assert ticks(axes) == ["8", "16", "128"]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "key"
    assert axes.get_ylabel() == "best, 3 of 4 runs"


def test_the_metric_is_drawn_over_many_numbers():
    (axes,) = drawn(against_keys(runs(*map(str, range(10, 60))), ["key"])).axes
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [10, *range(12, 60)]
    assert axes.get_xscale() == "linear"
    assert len(ticks(axes)) < 12


def test_the_metric_is_drawn_over_texts():
    (axes,) = drawn(against_keys(runs("chrono", None, "1", None), ["key"])).axes
    assert axes.collections[0].get_offsets().tolist() == [[0, 1], [1, 2], [2, 3]]
    assert ticks(axes) == ["chrono", "1", "None"]


def test_runs_that_differ_in_nothing_are_drawn_by_their_folders():
    same = [{"best": 1.0, "folder": "run0"}, {"best": 2.0, "folder": "run1"}]
    assert ticks(drawn(against_keys(same, [])).axes[0]) == ["run0", "run1"]


def test_no_run_with_a_metric_is_no_failure():
    (axes,) = drawn(against_keys(runs("1", "2")[1:], ["key"])).axes
    assert axes.get_ylabel() == "best, 0 of 1 runs"


def grid(**keys):
    """A run for every combination of the keys' values, with a metric that tells them apart."""
    found = [dict(zip(keys, row, strict=True)) for row in itertools.product(*keys.values())]
    return [run | {"best": float(i + 1), "folder": f"run{i}"} for i, run in enumerate(found)]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (["1e-4", "1e-2"], "log"),  # a factor of 100
        (["1e-3", "1e-2"], "log"),
        (["4", "8", "16", "32"], "log"),  # doubled each time
        (["1", "30", "60", "100"], "log"),
        (["4", "8"], "linear"),
        (["2", "4", "6", "8", "10"], "linear"),
        (["0", "1", "100"], "linear"),
        (["-100", "-1"], "linear"),
    ],
)
def test_what_was_swept_on_a_log_scale_is_drawn_on_one(values, scale):
    (axes,) = drawn(against_keys(grid(key=values[::-1]), ["key"])).axes
    assert axes.get_xscale() == scale
    assert ticks(axes) == [f"{float(value):g}" for value in values]  # in order, as numbers


def test_the_second_key_is_a_colour_with_a_legend():
    keys = {"n_hidden": ["16", "4", "8"], "lr": ["0.1", "0.001"], "seed": ["0", "1"]}
    figure = drawn(against_keys(grid(**keys), list(keys)))
    (axes,) = figure.axes
    assert (axes.get_xlabel(), ticks(axes)) == ("n_hidden", ["4", "8", "16"])
    (box,) = figure.legends
    assert (box.get_title().get_text(), legend(figure)) == ("lr", ["0.001", "0.1"])
    small, large = axes.collections
    assert small.get_offsets().tolist() == [[16, 3], [16, 4], [4, 7], [4, 8], [8, 11], [8, 12]]
    assert large.get_offsets().tolist() == [[16, 1], [16, 2], [4, 5], [4, 6], [8, 9], [8, 10]]
    assert not np.array_equal(small.get_facecolors(), large.get_facecolors())


def test_two_keys_of_many_values_have_a_panel_each_and_no_colour():
    values = [f"{value:.3g}" for value in np.geomspace(1e-4, 1e-1, 40)]
    search = [{"lr": v, "drop": str(i), "best": 10.0 ** (i - 3)} for i, v in enumerate(values)]
    left, right = drawn(figure := against_keys(search, ["lr", "drop"])).axes
    assert (left.get_xlabel(), right.get_xlabel(), figure.legends) == ("lr", "drop", [])
    assert (left.get_xscale(), right.get_xscale(), left.get_yscale()) == ("log", "linear", "log")
    assert len(left.collections[0].get_offsets()) == len(search)
    assert all(float(t.replace("\N{MINUS SIGN}", "-")).is_integer() for t in ticks(right))
