"""Pictures that explain a sequence network: numpy arrays in, a matplotlib `Figure` out.

B batch, T time steps, F inputs, L layers, H hidden units, O outputs.
STM is the short-term memory `h`, LTM the long-term memory `c`.
`Figure` is made directly, never through pyplot, so a training run leaves no figure open.
"""

from contextlib import suppress
from functools import partial
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

# Okabe and Ito's colours and a diverging map: the colour-blind can tell all of them apart.
TARGET, NETWORK, BASELINE, DIVERGING = "black", "#0072B2", "#E69F00", "RdBu_r"
MOST_POINTS, MOST_CASES = 2000, 40
MOST_STEPS, MOST_UNITS, MOST_INPUTS, MOST_OUTPUTS = 12, 16, 5, 4
WHOLE = {"integer": True, "min_n_ticks": 1}  # ticks at whole numbers, of which there may be one


def prediction_against_target(target_BO, prediction_BO, baseline_BO=None, baseline_name="baseline"):
    """Every prediction over its target, and beside it the first cases in order.

    target_BO, prediction_BO, baseline_BO: (B, O). The errors count all points, drawn or not.
    """
    B, O = target_BO.shape
    guesses = [("network", prediction_BO, NETWORK, 0.8)]
    if baseline_BO is not None:
        guesses.insert(0, (baseline_name, baseline_BO, BASELINE, 0.35))
    # A random choice, since one of every n points could always meet the same output.
    points = np.random.default_rng(0).choice(B * O, min(B * O, MOST_POINTS), replace=False)
    first = min(B, MOST_CASES)
    figure = Figure(figsize=(10, 4.4))
    parity, lines = figure.subplots(1, 2, width_ratios=(1, 1.6))
    # fixed: a constrained layout takes longer than all the drawing
    figure.subplots_adjust(0.09, 0.22, 0.985, 0.92, wspace=0.22)
    lines.plot(range(1, first + 1), target_BO[:first, 0], ".-", color=TARGET, label="target")
    for name, guess_BO, colour, alpha in guesses:
        if guess_BO.shape != target_BO.shape:
            raise ValueError(f"{name} has shape {guess_BO.shape}, target {target_BO.shape}")
        parity.scatter(target_BO.flat[points], guess_BO.flat[points], 14, colour, alpha=alpha, lw=0)
        label = f"{name}, MSE {np.mean((guess_BO - target_BO) ** 2):.3g}"
        lines.plot(range(1, first + 1), guess_BO[:first, 0], ".-", color=colour, label=label)
    # Both axes show every target and every finite prediction, those of a diverged network too.
    parity.update_datalim(np.stack([target_BO, target_BO], axis=-1).reshape(-1, 2))
    limits = np.sort([*parity.get_xlim(), *parity.get_ylim()])[[0, -1]]
    parity.plot(limits, limits, "--", color="grey", lw=1, label="prediction = target", zorder=0)
    title = (f"all {O} outputs pooled, " if O > 1 else "") + f"{len(points)} of {B * O} points"
    parity.set(xlabel="target", ylabel="prediction", title=title)
    parity.set(xlim=limits, ylim=limits, aspect="equal")
    parity.locator_params(nbins=4)  # each tick takes milliseconds
    title = f"first {first} of {B} cases" + (f", output 1 of {O}" if O > 1 else "")
    lines.set(xlabel="case", ylabel="value", title=title)
    lines.locator_params("x", nbins=5, **WHOLE)
    figure.legend(loc="lower center", ncols=4, frameon=False)
    return figure


def states_over_time(x_TF, stm_TLH, ltm_TLH=None):
    """What every hidden unit held at every step of one sequence, under the inputs it saw.

    x_TF: (T, F). stm_TLH, ltm_TLH: (T, L, H); without an LTM (a GRU) only the STM is drawn.
    """
    (T, F), (_, L, H) = x_TF.shape, stm_TLH.shape
    states = [("STM (h)", stm_TLH, 1.0)]
    if ltm_TLH is not None:
        # tanh bounds the STM, nothing the LTM. All layers share the bound, so they compare.
        bound = np.abs(ltm_TLH).max(initial=0.0, where=np.isfinite(ltm_TLH)) or 1.0
        states.append(("LTM (c)", ltm_TLH, bound))
    height = 1.9 + 1.7 * L
    bottom, top = 0.5 / height, 1 - 0.35 / height  # whatever the height, as many inches
    figure = Figure(figsize=(5.4 * len(states), height))
    parts = figure.subfigures(1, len(states), squeeze=False)[0]
    for part, (name, state_TLH, bound) in zip(parts, states, strict=True):
        if state_TLH.shape != (T, L, H):
            raise ValueError(f"{name} has shape {state_TLH.shape}, expected {(T, L, H)}")
        # The inputs stand over each state, so that a step is straight above what it left there.
        inputs, *maps = part.subplots(L + 1, sharex=True, height_ratios=[0.8] + [1] * L)
        part.subplots_adjust(0.12, bottom, 0.82, top, hspace=0.32)
        inputs.set_title(f"inputs x (F = {F})")
        inputs.set_prop_cycle(color=matplotlib.colormaps["viridis"](np.linspace(0, 0.85, F)))
        names = [f"x{f + 1}" for f in range(F)]
        inputs.plot(range(1, T + 1), x_TF, ".-" if T <= 60 else "-", label=names)
        if 1 < F <= 8:
            inputs.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
        look = {"cmap": DIVERGING, "clim": (-bound, bound), "interpolation": "nearest"}
        look |= {"aspect": "auto", "extent": (0.5, T + 0.5, H + 0.5, 0.5)}
        for layer, axes in enumerate(maps):
            image = axes.imshow(state_TLH[:, layer].T, **look)
            axes.set(title=f"{name}, layer {layer + 1}", ylabel="unit")
            axes.locator_params(nbins=6, **WHOLE)
        axes.set_xlabel("time step")
        bar = part.add_axes((0.84, bottom, 0.02, maps[0].get_position().y1 - bottom))
        bar.tick_params(labelsize=8)
        part.colorbar(image, bar, ticks=np.linspace(-bound, bound, 5), format="%.3g")
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
    notes = [f"steps {skipped + 1} to {T} of {T}"] if skipped else []
    counts = (H, MOST_UNITS, "units"), (F, MOST_INPUTS, "inputs"), (O, MOST_OUTPUTS, "outputs")
    notes += [f"first {most} of {n} {what}" for n, most, what in counts if n > most]
    # The axes fill the figure and one data unit is one inch, so text never outgrows its place.
    step, layer, unit = np.indices(stm_TLH.shape)
    column, row = unit // 4, unit % 4  # units fill columns of four
    numbers = stm_TLH.size <= 48
    node, between = (0.38, 0.6) if numbers else (0.2, 0.28)
    width, height = node * (column.max() + 1) + 0.1, node * (row.max() + 1) + 0.1
    inputs = 0.07 * x_TF.shape[1] + 0.41
    # from the bottom up: inputs, layers, head; from left to right: the initial state, the steps
    level_y = np.cumsum([0, inputs + height / 2, *[height + 0.34] * (L - 1), height / 2 + 0.49])
    step_x = (max(width, 0.56) + between) * np.arange(len(x_TF) + 1)
    head_x, top_y, head_y = step_x[-1], level_y[L], level_y[-1]
    left, right, low, high = min(-0.75, head_x - 2.6), head_x + 1.7, -inputs, head_y + 1.35
    figure = Figure(figsize=(right - left, high - low))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(low, high))
    axes.axis("off")
    arrows = [(head_x, top_y, 0, head_y - top_y - 0.13), (head_x, head_y, 0, 0.4)]
    for below, y in pairwise(level_y[:-1]):  # arrows start in the middle of a box, under it
        axes.bar(step_x[1:], height, width, y - height / 2, fc="0.95", ec="0.6")
        for before, x in pairwise(step_x):
            arrows.append((x, below, 0, y - height / 2 - below))
            arrows.append((before, y, x - width / 2 - before, 0))
    axes.quiver(*np.transpose(arrows), scale_units="xy", scale=1, units="xy", width=0.016, zorder=0)
    node_x = step_x[1 + step] + node * (column - column.max() / 2)
    node_y = level_y[1 + layer] - node * (row - row.max() / 2)
    nodes_XY = np.stack([node_x, node_y], axis=-1).reshape(-1, 2)
    look = {"array": stm_TLH.ravel(), "cmap": DIVERGING, "clim": (-1, 1), "ec": "0.4", "lw": 0.6}
    look |= {"units": "xy", "offsets": nodes_XY, "offset_transform": axes.transData}
    nodes = axes.add_collection(EllipseCollection(0.88 * node, 0.88 * node, 0, **look))
    bar = axes.inset_axes((right - 0.9, level_y[1] - 0.6, 0.14, 1.2), transform=axes.transData)
    figure.colorbar(nodes, bar, ticks=(-1, -0.5, 0, 0.5, 1), label="STM (h)")
    write = partial(axes.text, ha="center", va="center", size=8)
    boxed = partial(write, bbox={"boxstyle": "square,pad=0.4", "fc": "0.95", "ec": "0.6"})
    if numbers:
        for (x, y), value in zip(nodes_XY, stm_TLH.ravel(), strict=True):
            write(x, y, f"{value:z.2f}", size=6.5, color="white" if abs(value) > 0.6 else "black")
    for x, t, x_F in zip(step_x[1:], range(skipped + 1, T + 1), x_TF, strict=True):
        boxed(x, 0, "\n".join(f"{value:z.2f}" for value in x_F), size=7)
        write(x, low + 0.2, f"t = {t}")
    for level in range(L + 1):
        write(-0.1, level_y[level], f"layer {level}" if level else "input x", ha="right")
    write(0.34, top_y + 0.12, carried, size=7)
    write(0.34, top_y - 0.12, f"of step {skipped}" if skipped else "initial", size=7)
    write(head_x - 0.06, level_y[1] + height / 2 + 0.17, "STM", ha="right", size=7)
    write(head_x + 0.06, head_y - 0.32, "stm[-1]", ha="left", size=7, family="monospace")
    boxed(head_x, head_y, "Linear", size=9)
    write(head_x - 0.5, head_y, "prediction = head(stm[-1])", ha="right", family="monospace")
    outcomes = [("prediction", prediction_O, NETWORK), ("target", target_O, TARGET)]
    for line, (name, value_O, colour) in enumerate(outcomes[: 1 if target_O is None else 2]):
        values = ", ".join(f"{value:z.2f}" for value in value_O[:MOST_OUTPUTS])
        write(head_x, head_y + 0.49 + 0.17 * line, f"{name} {values}", color=colour)
    write(left + 0.12, high - 0.2, "The network unrolled in time", ha="left", size=11)
    write(left + 0.12, high - 0.4, ", ".join(notes), ha="left")
    return figure


def forecast(times_B, target_BO, prediction_BO, baseline_BO, baseline_name, lead):
    """A forecast beside the truth, its residuals, their autocorrelation, the error by step ahead.

    times_B: (B,) numbers or dates, of the first targets of consecutive windows. The targets and
    forecasts: (B, O), in the data's units. lead: steps from a window's end to its first target.
    """
    B, O = target_BO.shape
    last = slice(max(0, B - 5 * MOST_CASES), B)
    figure = Figure(figsize=(10, 6))
    over_time, left, middle, right = figure.subplot_mosaic("aaa;bcd", height_ratios=(6, 5)).values()
    figure.subplots_adjust(0.07, 0.19, 0.96, 0.95, hspace=0.3)
    over_time.plot(times_B[last], target_BO[last, 0], color=TARGET, label="target")
    guesses = [(baseline_name, baseline_BO, BASELINE), ("network", prediction_BO, NETWORK)]
    for name, values_BO, colour in guesses:
        over_time.plot(times_B[last], values_BO[last, 0], "--", color=colour, label=name)
        rmse_O = np.sqrt(np.mean((values_BO - target_BO) ** 2, axis=0))
        right.plot(lead + np.arange(O), rmse_O, "o-", color=colour, ms=4)
    ahead = f"forecast {lead} step{'s' * (lead > 1)} ahead"
    over_time.set_title(ahead + (f", the last {len(times_B[last])} of {B}" if last.start else ""))
    right.set(title="RMSE", xlabel="steps ahead", xlim=(lead - 0.5, lead + O - 0.5))
    right.set_ylim(0, 1.1 * right.dataLim.y1)
    right.locator_params("x", **WHOLE)
    residual_B = (prediction_BO - target_BO)[:, 0]
    left.plot(times_B, residual_B, ".", color=NETWORK, ms=3)
    left.axhline(0, color="grey", lw=1)
    left.set_title("residuals (network - target)")
    left.tick_params(axis="x", rotation=45, labelsize=7)
    lags = np.arange(1, min(40, B - 1) + 1)
    middle.vlines(lags, 0, autocorrelation(residual_B, lags), color=NETWORK, lw=3)
    # white noise stays inside this band 19 times of 20
    middle.axhspan(-1.96 / np.sqrt(B), 1.96 / np.sqrt(B), color="0.9", zorder=0)
    middle.set(title="their autocorrelation", xlabel="lag", ylim=(-1, 1))
    figure.legend(loc="lower center", ncols=3, frameon=False)
    return figure


def autocorrelation(values_B, lags):
    """The correlation of a series with itself, so many steps later."""
    centred_B = values_B - values_B.mean()
    power = (centred_B**2).sum() or 1.0
    return np.array([(centred_B[lag:] * centred_B[:-lag]).sum() / power for lag in lags])


def against_keys(runs, keys):
    """The metric of each run over the value of each key, or where none differs over its folder.

    runs: a dict for each, with the keys and then the metric. keys: their names.
    """
    metric, keys = list(runs[0])[len(keys)], keys or ["folder"]
    known = [run for run in runs if run[metric] is not None]
    figure = Figure(figsize=(1 + 3.2 * len(keys), 3.6), layout="constrained")
    axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=True):
        values = [str(run[key]) for run in known]
        with suppress(ValueError):  # of texts matplotlib makes categories
            values = list(map(float, values))
            if min(values) > 0 and max(values) >= 10 * min(values):
                axis.set_xscale("log")
            if len(few := sorted(set(values))) <= 6:
                axis.set_xticks(few, [f"{value:g}" for value in few])
        axis.scatter(values, [run[metric] for run in known], s=18, color=NETWORK, alpha=0.8)
        axis.set(xlabel=key, xmargin=0.2)
    axes[0].set_ylabel(f"{metric}, {len(known)} of {len(runs)} runs")
    return figure
