"""Public series that come with PyPI packages, as CSV files with the columns time and y.

    .venv-peers/bin/python benchmarks/public.py FOLDER

What they are, with their rows, sources and licences, stands in README.md beside this file.
"""

import sys
from pathlib import Path

import numpy as np

SERIES = ["wool", "beer", "unemployment", "gdp", "airline"]
SERIES += ["wine", "electrical", "co2", "elnino", "sunspots"]


def main(folder: Path) -> None:
    from pmdarima import datasets
    from statsmodels.datasets import co2, elec_equip, elnino, macrodata

    macro, weeks = macrodata.load_pandas().data, co2.load_pandas().data["co2"]
    found = {
        "wool": ("1965-01", 3, datasets.load_woolyrnq()),
        "beer": ("1956-01", 3, datasets.load_ausbeer()[:-1]),  # the last is missing
        "unemployment": ("1959-01", 3, macro["unemp"]),
        "gdp": ("1959-01", 3, np.log(macro["realgdp"])),
        "airline": ("1949-01", 1, datasets.load_airpassengers()),
        "wine": ("1980-01", 1, datasets.load_wineind()),
        "electrical": ("1995-01", 1, elec_equip.load_pandas().data.iloc[:, -1]),
        "co2": ("1958-03", 1, weeks.resample("MS").mean().interpolate()),
        "elnino": ("1950-01", 1, elnino.load_pandas().data.iloc[:, 1:].to_numpy().ravel()),
        "sunspots": ("1749-01", 1, datasets.load_sunspots()),
    }
    for name in SERIES:
        start, step, values = found[name]
        months = np.datetime64(start) + step * np.arange(len(values))
        rows = [f"{month}-01,{float(y)!r}\n" for month, y in zip(months, values, strict=True)]
        (folder / f"{name}.csv").write_text("time,y\n" + "".join(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
