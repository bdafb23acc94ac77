"""The `seqlab` commands, for checkpoints and finished runs.
Read a file here if you want to change what a command prints or writes."""
