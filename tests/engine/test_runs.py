"""Run folders: who holds one, and what is left of one that could not be begun."""

import pytest
from children import hold_and_die
from program import TINY, Process, run

from seqlab.engine.errors import UserError
from seqlab.engine.runs import clear, lock_folder


def test_a_folder_is_held_by_one_at_a_time_and_its_log_is_kept(tmp_path):
    (tmp_path / "train.log").write_text("a line\n")
    with lock_folder(tmp_path):
        with pytest.raises(UserError, match="another process is writing to it"):
            clear(tmp_path)
        with (tmp_path / "train.log").open("a") as file:
            file.write("another\n")
    assert {path.name for path in tmp_path.iterdir()} == {"train.log"}
    assert (tmp_path / "train.log").read_text() == "a line\nanother\n"


def test_a_process_that_ends_without_a_word_holds_nothing(tmp_path):
    process = Process(target=hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert (tmp_path / "held").exists()
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [0, 1])
def test_a_disk_that_is_full_at_the_start_is_one_line_and_leaves_nothing(room, small_disk):
    """Of two pages of 4 kB none is free, or the one for results.json."""
    disk = small_disk(8192)
    (disk / "full").write_bytes(bytes(4096 * (2 - room)))
    result = run(*TINY, cwd=disk)
    file = ["results.json", "config.yaml"][room]
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert f"/{file}: the disk is full: 0.0 MB to write, 0.0 free" in result.err
    assert {path.name for path in disk.iterdir()} == {"full"}


def test_a_disk_without_room_for_tensorboards_file_is_one_line(small_disk):
    result = run(*TINY, "hydra.run.dir=run", cwd=small_disk(8192))
    assert result.code == 2
    assert result.err == f"error: {result.cwd}/run: the disk is full\n"


def test_a_mistake_leaves_the_files_that_were_in_the_folder(tmp_path):
    for name in ("results.json", "notes.txt"):
        (tmp_path / name).write_text("{}")
    result = run(*TINY, "model.n_hidden=0", "hydra.run.dir=.", cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "notes.txt"}
