"""Runs the commands on files that mean harm, in a process that may not take the machine."""

import contextlib
import json
import time
from pathlib import Path

from program import Process, run, seqlab

BEST = "run/checkpoints/best.ckpt"
COMMANDS = {
    "evaluate": ["evaluate", BEST],
    "predict": ["predict", BEST, "--output", "forecast.csv"],
    "export": ["export", BEST, "--format", "safetensors", "--output", "weights.safetensors"],
    "stream": ["stream", BEST],
    "resume": ["resume=run"],
}


def attempt(folders: list[str], commands: list[str], report: Path) -> None:
    """Run each command in each folder, with 4 GB of memory in all, and write a line on each: exit
    code, stderr, seconds of the processor and by how many kB the peak of the memory grew."""
    import resource  # Windows has none

    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for folder in folders:
        for command in commands:
            start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with contextlib.chdir(folder):
                program = run if command == "resume" else seqlab
                done = program(*COMMANDS[command], cwd=Path(folder))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            line = [folder, command, done.code, done.err, time.process_time() - start, grown]
            with report.open("a") as file:
                file.write(f"{json.dumps(line)}\n")


def attempted(folders: list[str], commands: list[str], report: Path, seconds: float) -> list[list]:
    """What `attempt` wrote in so many seconds."""
    process = Process(target=attempt, args=(folders, commands, report))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return [json.loads(line) for line in report.read_text().splitlines()]
