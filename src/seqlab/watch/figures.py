"""Pictures that explain a sequence network: numpy arrays in, a matplotlib `Figure` out.

B batch, T time steps, F inputs, L layers, H hidden units, O outputs.
STM is the short-term memory `h`, LTM the long-term memory `c`.
`Figure` is made directly, never through pyplot, so a training run leaves no figure open.
"""

import matplotlib
import numpy as np
from matplotlib.collections import EllipseCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours and a diverging map: the colour-blind can tell all of them apart.
TARGET, NETWORK, BASELINE = "black", "#0072B2", "#E69F00"
DIVERGING = "RdBu_r"
MOST_POINTS, MOST_CASES = 2000, 40
MOST_STEPS, MOST_UNITS, MOST_INPUTS, MOST_OUTPUTS = 12, 16, 5, 4


def prediction_against_target(target_BO, prediction_BO, baseline_BO=None, baseline_name=""):
    """Every prediction over its target, and beside it the first cases in order.

    target_BO, prediction_BO, baseline_BO: (B, O). The errors count all points, drawn or not.
    """
    target_BO = np.asarray(target_BO, dtype=np.float64)
    B, O = target_BO.shape
    guesses = [("network", prediction_BO, NETWORK, 0.8)]
    if baseline_BO is not None:
        guesses.insert(0, (baseline_name or "baseline", baseline_BO, BASELINE, 0.35))
    # A random choice, since one of every n points could always meet the same output.
    drawn = np.random.default_rng(0).choice(B * O, min(B * O, MOST_POINTS), replace=False)
    shown = [target_BO.ravel()[drawn]]
    first = min(B, MOST_CASES)
    cases = np.arange(1, first + 1)

    figure = Figure(figsize=(10, 4.4))
    parity, lines = figure.subplots(1, 2, width_ratios=(1, 1.6))
    # fixed: a constrained layout takes longer than all the drawing
    figure.subplots_adjust(0.09, 0.22, 0.985, 0.92, wspace=0.22)
    lines.plot(cases, target_BO[:first, 0], ".-", color=TARGET, label="target")
    for name, guess_BO, colour, alpha in guesses:
        guess_BO = np.asarray(guess_BO, dtype=np.float64)
        if guess_BO.shape != target_BO.shape:
            raise ValueError(f"{name} has shape {guess_BO.shape}, target {target_BO.shape}")
        shown.append(guess_BO.ravel()[drawn])
        parity.scatter(shown[0], shown[-1], s=14, color=colour, alpha=alpha, linewidths=0)
        label = f"{name}, MSE {np.mean((guess_BO - target_BO) ** 2):.3g}"
        lines.plot(cases, guess_BO[:first, 0], ".-", color=colour, label=label)

    # A diverged network still gets its picture: only finite values set the limits.
    finite = np.concatenate(shown)
    finite = finite[np.isfinite(finite)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    limits = (low - margin, high + margin)
    parity.plot(limits, limits, "--", color="grey", lw=1, label="prediction = target", zorder=0)
    parity.set(xlim=limits, ylim=limits, aspect="equal", xlabel="target", ylabel="prediction")
    for axis in (parity.xaxis, parity.yaxis, lines.yaxis):
        axis.set_major_locator(MaxNLocator(4))  # each tick takes milliseconds
    pooled = f"all {O} outputs pooled" if O > 1 else "prediction against target"
    points = f", {len(drawn)} of {B * O} points" if len(drawn) < B * O else ""
    parity.set_title(pooled + points, y=1)  # given no y, matplotlib measures every label
    lines.set(xlabel="case", ylabel="value", xlim=(0, first + 1))
    lines.set_title(f"first {first} of {B} cases" + (f", output 1 of {O}" if O > 1 else ""), y=1)
    lines.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    figure.legend(loc="lower center", ncols=4, frameon=False)
    return figure


def states_over_time(x_TF, stm_TLH, ltm_TLH=None):
    """What every hidden unit held at every step of one sequence, under the inputs it saw.

    x_TF: (T, F). stm_TLH, ltm_TLH: (T, L, H); without an LTM (a GRU) only the STM is drawn.
    """
    x_TF, states = np.asarray(x_TF), [("STM (h)", np.asarray(stm_TLH), 1.0)]
    if ltm_TLH is not None:
        # tanh bounds the STM, nothing the LTM. All layers share the bound, so they compare.
        size = np.abs(ltm_TLH)
        bound = size[np.isfinite(size)].max(initial=0.0) or 1.0
        states.append(("LTM (c)", np.asarray(ltm_TLH), bound))
    (T, F), (L, H) = x_TF.shape, states[0][1].shape[1:]
    for name, state_TLH, _ in states:
        if state_TLH.shape != (T, L, H):
            raise ValueError(f"{name} has shape {state_TLH.shape}, expected {(T, L, H)}")

    # Margins in inches: a constrained layout of this many axes costs more than drawing them.
    width, height = 0.5 + 5.2 * len(states), 1.9 + 1.7 * L
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(0.7 / width, 0.5 / height, 1 - 0.1 / width, 1 - 0.35 / height)
    # Three grid columns a state: its heat maps, its colour bar, a gap for the bar's numbers.
    ratios = {"width_ratios": [1, 0.03, 0.15] * len(states), "height_ratios": [0.8] + [1] * L}
    grid = figure.add_gridspec(L + 1, 3 * len(states), wspace=0.08, hspace=0.32, **ratios)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, F))
    line = ".-" if T <= 60 else "-"
    for column, (name, state_TLH, bound) in enumerate(states):
        # The inputs stand over each column, so that a step is straight above its states.
        inputs = figure.add_subplot(grid[0, 3 * column])
        inputs.set_title(f"inputs x (F = {F})", y=1)
        for f, colour in enumerate(colours):
            inputs.plot(np.arange(1, T + 1), x_TF[:, f], line, color=colour, label=f"x{f + 1}")
        look = {"cmap": DIVERGING, "clim": (-bound, bound), "interpolation": "nearest"}
        look |= {"aspect": "auto", "extent": (0.5, T + 0.5, H + 0.5, 0.5)}
        for layer in range(L):
            axes = figure.add_subplot(grid[layer + 1, 3 * column], sharex=inputs)
            image = axes.imshow(state_TLH[:, layer].T, **look)
            axes.set_title(f"{name}, layer {layer + 1}", y=1)
            axes.set_ylabel("" if column else "unit")
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axes.tick_params(labelbottom=layer == L - 1)
        axes.set_xlabel("time step")
        inputs.tick_params(labelbottom=False)
        inputs.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))
        bar = figure.add_subplot(grid[1:, 3 * column + 1])
        figure.colorbar(image, bar, ticks=np.linspace(-bound, bound, 5), format="%.3g")
        bar.tick_params(labelsize=8)
    if 1 < F <= 8:
        inputs.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
    return figure


def unrolled(x_TF, stm_TLH, prediction_O, target_O=None, carried="(STM, LTM)"):
    """The network unrolled in time for one sequence: every node a unit, coloured by its STM.

    x_TF: (T, F). stm_TLH: (T, L, H). prediction_O, target_O: (O,).
    carried: what a layer hands to its next step; a GRU has only "STM".
    """
    x_TF, stm_TLH = np.asarray(x_TF), np.asarray(stm_TLH)
    (T, F), (_, L, H), O = x_TF.shape, stm_TLH.shape, len(prediction_O)
    if len(stm_TLH) != T:
        raise ValueError(f"x has shape {x_TF.shape}, STM {stm_TLH.shape}: not the same T")
    skipped = max(0, T - MOST_STEPS)
    x_TF, stm_TLH = x_TF[skipped:, :MOST_INPUTS], stm_TLH[skipped:, :, :MOST_UNITS]
    steps, _, units = stm_TLH.shape
    notes = [f"steps {skipped + 1} to {T} of {T}"] if skipped else []
    counts = (H, MOST_UNITS, "units"), (F, MOST_INPUTS, "inputs"), (O, MOST_OUTPUTS, "outputs")
    notes += [f"first {most} of {n} {what}" for n, most, what in counts if n > most]

    # The axes fill the figure and one data unit is one inch, so text never outgrows its place.
    # Units fill columns of four. Levels from the bottom up: inputs, layers, head.
    numbers = stm_TLH.size <= 48
    node, gap = (0.38, 0.6) if numbers else (0.2, 0.28)
    tall, wide = min(units, 4), -(-units // 4)
    layer_size = (node * wide + 0.1, node * tall + 0.1)
    sizes = np.array([(0.56, 0.14 * x_TF.shape[1] + 0.14), *[layer_size] * L, (0.7, 0.3)])
    level_y = np.concatenate(([0], np.cumsum(sizes[:-1, 1] / 2 + sizes[1:, 1] / 2 + 0.34)))
    step_x = (sizes[:-1, 0].max() + gap) * np.arange(steps)
    side, head_x, head_y = layer_size[0] / 2, step_x[-1], level_y[-1]
    left, right = min(-side - 1.5, head_x - 2.6), head_x + (0.7 if O == 1 else 1.35)
    low, high = -sizes[0, 1] / 2 - 0.35, head_y + 1.35
    figure = Figure(figsize=(right - left + 0.9, high - low))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right + 0.9), ylim=(low, high))
    axes.axis("off")

    boxes, arrows = [], [(head_x, head_y + 0.15, 0, 0.25)]
    for level, (width, height) in enumerate(sizes):
        for x in step_x if level <= L else [head_x]:
            corner = (x - width / 2, level_y[level] - height / 2)
            boxes.append(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=0.06"))
            if level > 0:
                below = level_y[level - 1] + sizes[level - 1, 1] / 2
                arrows.append((x, below, 0, corner[1] - below))
            if 0 < level <= L:
                before = x - step_x[1] + side if x > 0 else corner[0] - 0.75
                arrows.append((before, level_y[level], corner[0] - before, 0))
    axes.add_collection(PatchCollection(boxes, facecolor="0.95", edgecolor="0.6"))
    inches = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": 0.016}
    axes.quiver(*np.transpose(arrows), **inches)

    unit = np.arange(units)
    node_x = step_x[:, None, None] + node * (unit // 4 - (wide - 1) / 2)
    node_y = level_y[1:-1, None] - node * (unit % 4 - (tall - 1) / 2)
    nodes_XY = np.stack(np.broadcast_arrays(node_x, node_y), axis=-1).reshape(-1, 2)
    look = {"cmap": DIVERGING, "clim": (-1, 1), "edgecolor": "0.4", "linewidth": 0.6}
    place = {"units": "xy", "offsets": nodes_XY, "offset_transform": axes.transData}
    nodes = EllipseCollection(0.88 * node, 0.88 * node, 0, array=stm_TLH.ravel(), **place, **look)
    axes.add_collection(nodes)
    tallest = np.clip(level_y[L] - level_y[1] + layer_size[1], 1.2, 3)
    place = (right, (level_y[1] + level_y[L] - tallest) / 2, 0.14, tallest)
    bar = axes.inset_axes(place, transform=axes.transData)
    figure.colorbar(nodes, bar, ticks=(-1, -0.5, 0, 0.5, 1), label="STM (h)")

    def write(x, y, text, size=8, across="center", **style):
        axes.text(x, y, text, size=size, ha=across, va="center", **style)

    if numbers:
        for (x, y), value in zip(nodes_XY, stm_TLH.ravel(), strict=True):
            write(x, y, _number(value), 6.5, color="white" if abs(value) > 0.6 else "black")
    for x, step, x_F in zip(step_x, range(skipped + 1, T + 1), x_TF, strict=True):
        write(x, 0, "\n".join(map(_number, x_F)), 7)
        write(x, low + 0.2, f"t = {step}")
    for level in range(L + 1):
        label = f"layer {level}" if level else "input x"
        write(-side - 0.85, level_y[level], label, across="right")
    # Named where the first arrow between steps leaves room, else on the one that comes in.
    carried_x = step_x[1] / 2 if numbers and steps > 1 else -side - 0.4
    write(carried_x, level_y[L] + 0.12, carried, 7)
    write(-side - 0.4, level_y[L] - 0.12, f"of step {skipped}" if skipped else "initial", 7)
    if L > 1:
        write(0.06, (level_y[1] + level_y[2]) / 2, "STM", 7, "left")
    write(head_x + 0.06, head_y - 0.32, "stm[-1]", 7, "left", family="monospace")
    write(head_x, head_y, "Linear", 9)
    write(head_x - 0.5, head_y, "prediction = head(stm[-1])", 8, "right", family="monospace")
    outcomes = [("prediction", prediction_O, NETWORK), ("target", target_O, TARGET)]
    for row, (name, value_O, colour) in enumerate(outcomes[: 1 if target_O is None else 2]):
        values = ", ".join(map(_number, value_O[:MOST_OUTPUTS]))
        write(head_x, head_y + 0.49 + 0.17 * row, f"{name} {values}", color=colour)
    write(left + 0.12, high - 0.2, "The network unrolled in time", 11, "left")
    write(left + 0.12, high - 0.4, ", ".join(notes), 8, "left")
    return figure


def _number(value):
    return f"{value:z.2f}" if abs(value) < 100 else f"{value:.3g}"


def forecast(times_B, target_BO, prediction_BO, baseline_BO, baseline_name, lead):
    """A forecast in order of time: beside the truth, its residuals, their autocorrelation, and
    the error at each step ahead.

    times_B: (B,) numbers or dates, those of each window's first target. target_BO, prediction_BO,
    baseline_BO: (B, O), consecutive windows, in the data's units. lead: steps from a window's end
    to its first target.
    """
    target_BO, prediction_BO, baseline_BO = (
        np.asarray(part, dtype=np.float64) for part in (target_BO, prediction_BO, baseline_BO)
    )
    B, O = target_BO.shape
    last = slice(max(0, B - 5 * MOST_CASES), B)
    guesses = [(baseline_name, baseline_BO, BASELINE), ("network", prediction_BO, NETWORK)]
    figure = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    over_time, (left, middle, right) = above.subplots(), below.subplots(1, 3)
    over_time.plot(times_B[last], target_BO[last, 0], color=TARGET, label="target", lw=1.5)
    for name, values_BO, colour in guesses:
        over_time.plot(times_B[last], values_BO[last, 0], "--", color=colour, label=name, lw=1.5)
        rmse_O = np.sqrt(np.mean((values_BO - target_BO) ** 2, axis=0))
        right.plot(lead + np.arange(O), rmse_O, "o-", color=colour, ms=4)
    ahead = f"forecast {lead} step{'s' * (lead > 1)} ahead"
    over_time.set(title=ahead + (f", the last {len(times_B[last])} of {B}" if last.start else ""))
    above.legend(loc="outside right upper", frameon=False)
    right.set(title="RMSE", xlabel="steps ahead", ylim=(0, None), xlim=(lead - 1, lead + O))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))

    residual_B = (prediction_BO - target_BO)[:, 0]
    left.plot(times_B, residual_B, ".", color=NETWORK, ms=3)
    left.axhline(0, color="grey", lw=1)
    left.set(title="residuals (network - target)")
    left.tick_params(axis="x", rotation=45, labelsize=7)
    lags = np.arange(1, min(40, B - 1) + 1)
    middle.bar(lags, autocorrelation(residual_B, lags), color=NETWORK)
    # white noise stays inside this band 19 times of 20
    for edge in (-1.96, 1.96):
        middle.axhline(edge / np.sqrt(B), color="grey", ls="--", lw=1)
    middle.set(title="their autocorrelation", xlabel="lag", ylim=(-1, 1))
    return figure


def autocorrelation(values_B, lags):
    """The correlation of a series with itself, so many steps later."""
    centred_B = values_B - values_B.mean()
    power = (centred_B**2).sum() or 1.0
    return np.array([(centred_B[lag:] * centred_B[:-lag]).sum() / power for lag in lags])


def against_knobs(runs, knobs):
    """The metric of each run over the value of each knob.

    runs: a dict for each, with the knobs and then the metric. knobs: their names.
    """
    metric = list(runs[0])[len(knobs)]
    figure = Figure(figsize=(1 + 3.2 * max(1, len(knobs)), 3.6), layout="constrained")
    axes = figure.subplots(1, max(1, len(knobs)), sharey=True, squeeze=False)[0]
    known = [run for run in runs if run[metric] is not None]
    for axis, knob in zip(axes, knobs, strict=False):
        texts = [str(run[knob]) for run in known]
        try:
            values = [float(text) for text in texts]
        except ValueError:
            values = sorted(set(texts))
            axis.set_xticks(range(len(values)), values)
            values = [values.index(text) for text in texts]
        else:
            if min(values, default=0) > 0 and max(values) >= 20 * min(values):
                axis.set_xscale("log")
        axis.scatter(values, [run[metric] for run in known], s=18, color=NETWORK, alpha=0.8)
        axis.set_xlabel(knob)
    axes[0].set_ylabel(metric)
    figure.suptitle(f"{len(known)} of {len(runs)} runs have a value", fontsize="medium")
    return figure
