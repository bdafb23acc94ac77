"""Pictures that explain a sequence network: numpy arrays in, a matplotlib `Figure` out.

B batch, T time steps, F inputs, L layers, H hidden units, O outputs.
STM is the short-term memory `h`, LTM the long-term memory `c`.
`Figure` is made directly, never through pyplot, so a training run leaves no figure open.
"""

import matplotlib
import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# Okabe and Ito's colours and a diverging map: the colour-blind can tell all of them apart.
TARGET, NETWORK, BASELINE = "black", "#0072B2", "#E69F00"
DIVERGING = "RdBu_r"
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
    cases = np.arange(1, min(B, MOST_CASES) + 1)

    figure = Figure(figsize=(10, 4.4))
    parity, lines = figure.subplots(1, 2, width_ratios=(1, 1.6))
    # fixed: a constrained layout takes longer than all the drawing
    figure.subplots_adjust(0.09, 0.22, 0.985, 0.92, wspace=0.22)
    lines.plot(cases, target_BO[: len(cases), 0], ".-", color=TARGET, label="target")
    for name, guess_BO, colour, alpha in guesses:
        if guess_BO.shape != target_BO.shape:
            raise ValueError(f"{name} has shape {guess_BO.shape}, target {target_BO.shape}")
        shown = target_BO.flat[points], guess_BO.flat[points]
        parity.scatter(*shown, s=14, color=colour, alpha=alpha, linewidths=0)
        label = f"{name}, MSE {np.mean((guess_BO - target_BO) ** 2):.3g}"
        lines.plot(cases, guess_BO[: len(cases), 0], ".-", color=colour, label=label)

    # Both axes show all targets and all finite predictions, those of a diverged network too.
    parity.update_datalim(np.stack([target_BO, target_BO], axis=-1).reshape(-1, 2))
    either = *parity.get_xlim(), *parity.get_ylim()
    limits = min(either), max(either)
    parity.plot(limits, limits, "--", color="grey", lw=1, label="prediction = target", zorder=0)
    parity.set(xlim=limits, ylim=limits, aspect="equal", xlabel="target", ylabel="prediction")
    lines.set(xlabel="case", ylabel="value", xlim=(0, len(cases) + 1))
    parity.locator_params(nbins=4)  # each tick takes milliseconds
    lines.locator_params("y", nbins=4)
    lines.locator_params("x", nbins=5, **WHOLE)
    left = f"all {O} outputs pooled" if O > 1 else "prediction against target"
    left += f", {MOST_POINTS} of {B * O} points" if len(points) < B * O else ""
    right = f"first {len(cases)} of {B} cases" + (f", output 1 of {O}" if O > 1 else "")
    parity.set_title(left, y=1)  # given no y, matplotlib measures every label
    lines.set_title(right, y=1)
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
    # Margins in inches: a constrained layout of this many axes costs more than drawing them.
    height, heights = 1.9 + 1.7 * L, [0.8] + [1] * L
    bottom, top = 0.5 / height, 1 - 0.35 / height
    figure = Figure(figsize=(5.4 * len(states), height))
    parts = figure.subfigures(1, len(states), squeeze=False)[0]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, F))
    for part, (name, state_TLH, bound) in zip(parts, states, strict=True):
        if state_TLH.shape != (T, L, H):
            raise ValueError(f"{name} has shape {state_TLH.shape}, expected {(T, L, H)}")
        # The inputs stand over each state, so that a step is straight above what it left there.
        inputs, *maps = part.subplots(L + 1, sharex=True, height_ratios=heights)
        part.subplots_adjust(0.12, bottom, 0.86, top, hspace=0.32)
        inputs.set_title(f"inputs x (F = {F})", y=1)
        for f, colour in enumerate(colours):
            line = ".-" if T <= 60 else "-"
            inputs.plot(np.arange(1, T + 1), x_TF[:, f], line, color=colour, label=f"x{f + 1}")
        if 1 < F <= 8:
            inputs.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7)
        look = {"cmap": DIVERGING, "clim": (-bound, bound), "interpolation": "nearest"}
        look |= {"aspect": "auto", "extent": (0.5, T + 0.5, H + 0.5, 0.5)}
        for layer, axes in enumerate(maps):
            image = axes.imshow(state_TLH[:, layer].T, **look)
            axes.set_title(f"{name}, layer {layer + 1}", y=1)
            axes.set_ylabel("unit")
            axes.locator_params("y", nbins=4, **WHOLE)
        axes.set_xlabel("time step")
        axes.locator_params("x", nbins=9, **WHOLE)
        bar = part.add_axes((0.88, bottom, 0.025, maps[0].get_position().y1 - bottom))
        part.colorbar(image, bar, ticks=np.linspace(-bound, bound, 5), format="%.3g")
        bar.tick_params(labelsize=8)
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
    level_y = np.cumsum(sizes[:, 1] + 0.34) - 0.34 - sizes[:, 1] / 2
    spacing = sizes[:-1, 0].max() + gap
    step_x, side = spacing * np.arange(steps), layer_size[0] / 2
    head_x, head_y, top_y = step_x[-1], level_y[-1], level_y[L]
    left, right, low, high = min(-side - 1.5, head_x - 2.6), head_x + 1.7, -0.35, head_y + 1.35
    figure = Figure(figsize=(right - left, high - low))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(low, high))
    axes.axis("off")

    arrows = [(head_x, head_y + 0.15, 0, 0.25)]
    look = {"boxstyle": "round,pad=0,rounding_size=0.06", "fc": "0.95", "ec": "0.6"}
    for level, (width, height) in enumerate(sizes):
        for x in step_x if level <= L else [head_x]:
            corner = (x - width / 2, level_y[level] - height / 2)
            axes.add_patch(FancyBboxPatch(corner, width, height, **look))
            if level > 0:
                arrows.append((x, corner[1] - 0.34, 0, 0.34))
            if 0 < level <= L:
                length = spacing - width if x > 0 else 0.75
                arrows.append((corner[0] - length, level_y[level], length, 0))
    inches = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": 0.016}
    axes.quiver(*np.transpose(arrows), **inches)

    step, layer, unit = np.indices(stm_TLH.shape)
    node_x = spacing * step + node * (unit // 4 - (wide - 1) / 2)
    node_y = level_y[1 + layer] - node * (unit % 4 - (tall - 1) / 2)
    nodes_XY = np.stack([node_x, node_y], axis=-1).reshape(-1, 2)
    look = {"cmap": DIVERGING, "clim": (-1, 1), "edgecolor": "0.4", "linewidth": 0.6}
    place = {"units": "xy", "offsets": nodes_XY, "offset_transform": axes.transData}
    nodes = EllipseCollection(0.88 * node, 0.88 * node, 0, array=stm_TLH.ravel(), **place, **look)
    axes.add_collection(nodes)
    place = (right - 0.9, (level_y[1] + top_y) / 2 - 0.6, 0.14, 1.2)
    bar = axes.inset_axes(place, transform=axes.transData)
    figure.colorbar(nodes, bar, ticks=(-1, -0.5, 0, 0.5, 1), label="STM (h)")

    def write(x, y, text, size=8, across="center", **style):
        axes.text(x, y, text, size=size, ha=across, va="center", **style)

    if numbers:
        for (x, y), value in zip(nodes_XY, stm_TLH.ravel(), strict=True):
            write(x, y, _number(value), 6.5, color="white" if abs(value) > 0.6 else "black")
    for x, t, x_F in zip(step_x, range(skipped + 1, T + 1), x_TF, strict=True):
        write(x, level_y[0], "\n".join(map(_number, x_F)), 7)
        write(x, low + 0.2, f"t = {t}")
    for level in range(L + 1):
        label = f"layer {level}" if level else "input x"
        write(-side - 0.85, level_y[level], label, across="right")
    write(-side - 0.4, top_y + 0.12, carried, 7)
    write(-side - 0.4, top_y - 0.12, f"of step {skipped}" if skipped else "initial", 7)
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
    B, O = target_BO.shape
    last = slice(max(0, B - 5 * MOST_CASES), B)
    figure = Figure(figsize=(10, 6))
    over_time, left, middle, right = figure.subplot_mosaic(
        "aaa;bcd", height_ratios=(1.2, 1), gridspec_kw={"hspace": 0.35}
    ).values()
    figure.subplots_adjust(0.07, 0.12, 0.985, 0.94)
    over_time.plot(times_B[last], target_BO[last, 0], color=TARGET, label="target")
    guesses = [(baseline_name, baseline_BO, BASELINE), ("network", prediction_BO, NETWORK)]
    for name, values_BO, colour in guesses:
        over_time.plot(times_B[last], values_BO[last, 0], "--", color=colour, label=name)
        rmse_O = np.sqrt(np.mean((values_BO - target_BO) ** 2, axis=0))
        right.plot(lead + np.arange(O), rmse_O, "o-", color=colour, ms=4)
    title = f"forecast {lead} step{'s' * (lead > 1)} ahead"
    title += f", the last {len(times_B[last])} of {B}" if last.start else ""
    over_time.set_title(title, loc="left")
    over_time.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    right.set(title="RMSE", xlabel="steps ahead", ylim=(0, 1.1 * right.dataLim.y1))
    right.set_xlim(lead - 0.5, lead + O - 0.5)
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
    return figure


def autocorrelation(values_B, lags):
    """The correlation of a series with itself, so many steps later."""
    centred_B = values_B - values_B.mean()
    power = (centred_B**2).sum() or 1.0
    return np.array([(centred_B[lag:] * centred_B[:-lag]).sum() / power for lag in lags])


def against_keys(runs, keys):
    """The metric of each run over the value of each key.

    runs: a dict for each, with the keys and then the metric. keys: their names.
    """
    metric = list(runs[0])[len(keys)]
    known = [run for run in runs if run[metric] is not None]
    columns = max(1, len(keys))
    figure = Figure(figsize=(1 + 3.2 * columns, 3.6), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=False):
        texts = [str(run[key]) for run in known]
        try:
            places = {text: float(text) for text in texts}
        except ValueError:
            places = {}
        if len(places) > 6:
            if min(places.values()) > 0 and max(places.values()) >= 20 * min(places.values()):
                axis.set_xscale("log")
        else:  # a few values, or no numbers, stand side by side
            names = sorted(set(texts), key=lambda text: (places.get(text, 0), text))
            places = {name: place for place, name in enumerate(names)}
            axis.set_xticks(range(len(names)), names)
        axis.scatter([places[t] for t in texts], [r[metric] for r in known], s=18, color=NETWORK)
        axis.set_xlabel(key)
        axis.margins(x=0.2)
    axes[0].set_ylabel(metric)
    figure.suptitle(f"{len(known)} of {len(runs)} runs have a value", fontsize="medium")
    return figure
