"""A series of your own: reading, cutting, windows, baselines. Read this folder to change how a file
becomes windows; to forecast a file, `conf/data/series.yaml` is enough."""
