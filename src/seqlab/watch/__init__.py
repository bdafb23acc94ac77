"""Callbacks that watch a run: progress on the console, the record in TensorBoard, pictures.
Read this if you want to see something else of a run, and add a callback of your own."""
