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
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours and a diverging map: the colour-blind can tell all of them apart.
TARGET, NETWORK, BASELINE, DIVERGING = "black", "#0072B2", "#E69F00", "RdBu_r"
MOST_POINTS, MOST_CASES, MOST_CLASSES, MOST_COLOURS = 2000, 40, 30, 8
MOST_STEPS, MOST_UNITS, MOST_INPUTS, MOST_OUTPUTS = 12, 16, 5, 4
WHOLE = {"integer": True, "min_n_ticks": 1}  # ticks at whole numbers, of which there may be one


def prediction_against_target(target_BO, prediction_BO, baseline_BO=None, baseline_name="baseline"):
    """Every prediction over its target, and beside it the first cases, a column of marks for each:
    one case has nothing to do with the next, so no line joins them.

    target_BO, prediction_BO, baseline_BO: (B, O). The errors count all points, drawn or not.
    """
    B, O = target_BO.shape
    guesses = [("network", prediction_BO, {"c": NETWORK, "marker": "o", "alpha": 0.8})]
    if baseline_BO is not None:
        look = {"c": BASELINE, "marker": "x", "alpha": 0.5}
        guesses.insert(0, (baseline_name, baseline_BO, look))
    # A random choice, since one of every n points could always meet the same output.
    points = np.random.default_rng(0).choice(B * O, min(B * O, MOST_POINTS), replace=False)
    first = min(B, MOST_CASES)
    figure = Figure(figsize=(10, 4.4))
    parity, cases = figure.subplots(1, 2, width_ratios=(1, 1.6))
    # fixed: a constrained layout takes longer than all the drawing
    figure.subplots_adjust(0.09, 0.22, 0.985, 0.92, wspace=0.22)
    cases.plot(range(1, first + 1), target_BO[:first, 0], "_", color=TARGET, label="target")
    for name, guess_BO, look in guesses:
        if guess_BO.shape != target_BO.shape:
            raise ValueError(f"{name} has shape {guess_BO.shape}, target {target_BO.shape}")
        parity.scatter(target_BO.flat[points], guess_BO.flat[points], 14, lw=0.6, **look)
        label = f"{name}, MSE {np.mean((guess_BO - target_BO) ** 2):.3g}"
        cases.plot(range(1, first + 1), guess_BO[:first, 0], ls="", ms=4, label=label, **look)
    # Both axes show every target and every finite prediction, those of a diverged network too.
    parity.update_datalim(np.stack([target_BO, target_BO], axis=-1).reshape(-1, 2))
    limits = np.sort([*parity.get_xlim(), *parity.get_ylim()])[[0, -1]]
    parity.plot(limits, limits, "--", color="grey", lw=1, label="prediction = target", zorder=0)
    title = (f"all {O} outputs pooled, " if O > 1 else "") + f"{len(points)} of {B * O} points"
    parity.set(xlabel="target", ylabel="prediction", title=title)
    parity.set(xlim=limits, ylim=limits, aspect="equal")
    parity.locator_params(nbins=4)  # each tick takes milliseconds
    title = f"first {first} of {B} cases" + (f", output 1 of {O}" if O > 1 else "")
    cases.set(xlabel="case", ylabel="value", title=title)
    cases.locator_params("x", nbins=5, **WHOLE)
    figure.legend(loc="lower center", ncols=4, frameon=False)
    return figure


def confusion(target_N, answer_N, n_classes):
    """How many targets of each class, a row each, got which class for an answer.

    target_N, answer_N: (N,), class numbers from 0, NaN for a target that there is not.
    """
    known_N = ~np.isnan(target_N)
    target_N, answer_N = (part_N[known_N].astype(int) for part_N in (target_N, answer_N))
    C = 1 + max([n_classes - 1, *target_N, *answer_N])
    counts_CC = np.zeros((C, C), int)
    np.add.at(counts_CC, (target_N, answer_N), 1)
    # coloured by the share of their row: a rare class shows as much as a frequent one
    share_CC = counts_CC / counts_CC.sum(axis=1, keepdims=True).clip(1)
    side = max(3, 1.2 + min(C, MOST_CLASSES) * (0.5 if C <= 12 else 0.28))
    figure = Figure(figsize=(1.2 + side, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the targets of a class")
    right = f"{(target_N == answer_N).sum()} of {len(target_N)} targets right"
    axes.set(xlabel="prediction", ylabel="target", title=right)
    axes.locator_params(nbins=MOST_CLASSES, **WHOLE)
    for row, column in np.argwhere(counts_CC) if C <= MOST_CLASSES else ():
        look = {"color": "white" if share_CC[row, column] > 0.5 else "black", "size": 7}
        axes.text(column, row, counts_CC[row, column], ha="center", va="center", **look)
    return figure


def answers_over_time(target_T, answer_T, numeric):
    """The targets and the answers at the steps of one sequence, grey where there is no target.

    target_T, answer_T: (T,), numbers or classes, NaN for a target that there is not.
    """
    steps_T, missing_T = np.arange(1, len(target_T) + 1), np.isnan(target_T)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    line = "-" if numeric else ""  # between classes there is nothing
    axes.plot(steps_T, target_T, "s", ls=line, color=TARGET, mfc="none", ms=6, label="target")
    answer_T = np.where(missing_T, np.nan, answer_T)
    axes.plot(steps_T, answer_T, "o", ls=line, color=NETWORK, ms=3, label="prediction")
    axes.set(xlabel="time step", ylabel="value" if numeric else "class")
    axes.locator_params("x", **WHOLE)
    if not numeric:
        axes.locator_params("y", **WHOLE)
    axes.set(xlim=(0.5, len(steps_T) + 0.5), ylim=axes.get_ylim())
    if missing_T.any():
        look = {"color": "0.9", "transform": axes.get_xaxis_transform(), "label": "no target"}
        axes.bar(steps_T[missing_T], 1, 1, **look)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def by_length(values, trained, name):
    """A metric over the length of the sequences, and which lengths were trained on.

    values: the metric by length, ascending. trained: the shortest and the longest in training.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    low, high = trained
    axes.axvspan(low - 0.5, high + 0.5, color="0.9", label="lengths of training")
    axes.plot(list(values), list(values.values()), "o-", color=NETWORK, ms=3, lw=1, label="test")
    if name == "accuracy":
        axes.set(ylim=(-0.03, 1.03))
    axes.set(xlabel="length of the sequence", ylabel=name)
    axes.locator_params("x", **WHOLE)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
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
        part.colorbar(image, bar, ticks=MaxNLocator(5, steps=(1, 2, 5, 10)), format="%.3g")
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


def last_forecasts(panels, column, time, level):
    """What was forecast at the end of one series or of several, one below the other.

    panels: for each series its title; times and values `(N,)` of its last rows; the rows `(K, O)`
    that K windows forecast; by name what was forecast there `(K, O)`, the network's last; the ends
    of the network's intervals, the low and the high ones, there `(2, K, O)` and after the end
    `(2, O)`, or None; and the times and the forecasts `(M,)` of what follows the end, or None.
    column, time: what the values and the times are called.
    level: the probability of the intervals, as a text.
    """
    figure = Figure(figsize=(10, 1 + 3.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        title, times_N, values_N, rows_KO, guesses, ends, after = panel
        begin = rows_KO.min(initial=len(times_N))
        axis.plot(times_N[: begin + 1], values_N[: begin + 1], color="0.6", label="history")
        if guesses:
            axis.plot(times_N[begin:], values_N[begin:], color=TARGET, label="truth")
        # the forecasts of one step make one line, those of several steps a line for each window
        band, lines = None, [slice(None)] if rows_KO.shape[1] == 1 else range(len(rows_KO))
        # the baseline's is broader, since the network's often covers it
        looks = ({"color": BASELINE, "lw": 3}, {"color": NETWORK, "lw": 1.3})
        for (name, guess_KO), look in zip(guesses.items(), looks, strict=False):
            for i in lines:
                at, guess = times_N[rows_KO[i].ravel()], guess_KO[i].ravel()
                axis.plot(at, guess, label=name if i == lines[0] else None, **look)
                if look is looks[1] and ends is not None:
                    band = shade(axis, at, guess, ends[0][:, i].reshape(2, -1))
        if after is not None:
            mark = "." if len(after[1]) > 1 else "o"
            look = {"color": NETWORK, "ls": ":", "marker": mark, "label": "network, after the end"}
            axis.plot(*after, **look)
            if ends is not None:
                few = slice(ends[1].shape[1])
                last = shade(axis, after[0][few], after[1][few], ends[1][:, : len(after[1])])
                band = band or last
        if band is not None:
            band.set_label(f"{level} interval")
        if np.issubdtype(times_N.dtype, np.datetime64):
            axis.xaxis.set_major_locator(dates := AutoDateLocator())
            axis.xaxis.set_major_formatter(ConciseDateFormatter(dates))
        axis.set(title=f"{column}, {title}", ylabel=column)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axis.set_xlabel(time)
    return figure


def shade(axis, times, values, ends):
    """Shade what lies within intervals around values; around a single one it is a bar."""
    if len(times) == 1:
        reach = np.abs(ends - values)
        return axis.errorbar(times, values, reach, fmt="none", ecolor=NETWORK, alpha=0.5, lw=4)
    return axis.fill_between(times, *ends, color=NETWORK, alpha=0.2, lw=0)


def against_keys(runs, keys):
    """The metric of each run over the value of each key, or where none differs over its folder. Of
    several keys the one with the fewest values is shown by colours, if these are few. The seed is
    no such key: runs that differ in it alone are repetitions.

    runs: a dict for each, with the keys and then the metric. keys: their names.
    """
    metric = list(runs[0])[len(keys)]
    keys = [key for key in keys if key != "seed"] or keys or ["folder"]
    known = [run for run in runs if run[metric] is not None]
    scores = np.array([run[metric] for run in known], float)
    columns = {key: column([run[key] for run in known]) for key in keys}
    kinds = {key: np.unique(columns[key]) for key in keys}
    few, parts = min(reversed(keys), key=lambda key: len(kinds[key])), [(slice(None), NETWORK, "")]
    if len(keys) > 1 and 0 < len(kinds[few]) <= MOST_COLOURS:
        keys = [key for key in keys if key != few]
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(kinds[few])))
        pairs = zip(kinds[few], colours, strict=True)
        parts = [(columns[few] == kind, colour, shown(kind)) for kind, colour in pairs]
    figure = Figure(figsize=(1.6 + 3.8 * len(keys), 4), layout="constrained")
    axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=True):
        for part, colour, label in parts:
            axis.scatter(columns[key][part], scores[part], 18, [colour], label=label, alpha=0.7)
        if known and columns[key].dtype == float:
            axis.set_xscale("log" if is_geometric(kinds[key]) else "linear")
            if len(kinds[key]) <= 8:
                axis.set_xticks(kinds[key], map(shown, kinds[key]))
                axis.minorticks_off()
            elif axis.get_xscale() == "linear" and (kinds[key] % 1 == 0).all():
                axis.locator_params("x", **WHOLE)
        axis.set(xlabel=key, xmargin=0.1)
    axes[0].set_ylabel(f"{metric}, {len(known)} of {len(runs)} runs")
    if len(scores) and 0 < 100 * scores.min() <= scores.max():
        axes[0].set_yscale("log")
    if len(parts) > 1:
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right", title=few, frameon=False)
    return figure


def column(values):
    """Values of a key as finite numbers, or where some are none as texts."""
    texts = np.array(list(map(str, values)))
    with suppress(ValueError):
        if np.isfinite(numbers := texts.astype(float)).all():
            return numbers
    return texts


def shown(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_geometric(kinds):
    """Whether sorted numbers belong on a log scale: they span a factor of 100, or one of 4 with
    steps whose ratios differ less than the steps."""
    if kinds[0] <= 0 or kinds[-1] < 4 * kinds[0]:
        return False
    uneven = [np.std(steps) / np.mean(steps) for steps in (np.diff(np.log(kinds)), np.diff(kinds))]
    return bool(kinds[-1] >= 100 * kinds[0] or uneven[0] <= uneven[1])
