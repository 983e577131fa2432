"""A file is there whole, as it was, or not at all."""

import pytest

from jaxprune.files import whole


def test_what_was_written_takes_the_place(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with whole(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), whole(path) as file:
        file.write(b"ne")
        raise OSError("the disk is full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
