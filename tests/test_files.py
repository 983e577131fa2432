"""A file is there whole, as it was, or not at all; what a link points to stays as it is."""

import os
import stat

import pytest

from jaxprune import files
from jaxprune.files import utf8, whole, whole_and_new


def test_what_was_written_takes_the_place(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with whole(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("write", [whole, whole_and_new])
def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path, write):
    path = tmp_path / "f"
    if write == whole:
        path.write_text("old")
    before = list(tmp_path.iterdir())
    with pytest.raises(OSError, match="full"), write(path) as file:
        file.write(b"ne")
        raise OSError("the disk is full")
    assert list(tmp_path.iterdir()) == before
    assert not before or path.read_text() == "old"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "f"
    with whole(path) as first, whole(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name, target in (("f", "mine"), ("f.part", "mine"), ("g.part", "nowhere")):
        (tmp_path / name).symlink_to(target)
    for name in "fg":
        with whole(tmp_path / name) as file:
            file.write(b"new")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_bytes() == b"new"
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["f", "f.part", "g", "g.part", "mine"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_nothing_whenever_it_comes(tmp_path, monkeypatch, links):
    """Also where the file system has no hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("link")))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="link"):
        whole_and_new(tmp_path / "link")
    with pytest.raises(FileExistsError, match="exists"), whole_and_new(tmp_path / "f") as file:
        file.write(b"new")
        (tmp_path / "f").write_text("mine")
    assert (tmp_path / "f").read_text() == "mine"
    with whole_and_new(tmp_path / "g") as file:
        file.write(b"new")
    assert (tmp_path / "g").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["f", "g", "link"]


def test_a_folder_with_what_a_killed_writer_left_is_unused(tmp_path):
    assert files.is_unused(tmp_path)
    with whole(tmp_path / "f"):
        assert len(os.listdir(tmp_path)) == 1 and files.is_unused(tmp_path)
    assert not files.is_unused(tmp_path)


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "f").write_text("mine")
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for mode in ("rb", "ab"):
        with open(tmp_path / "f", mode, opener=files.open_regular) as file:
            assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        with pytest.raises(OSError, match="is a symbolic link"):
            open(tmp_path / "link", mode, opener=files.open_regular)
        for name in ("folder", "fifo"):
            with pytest.raises(OSError):
                open(tmp_path / name, mode, opener=files.open_regular)
    assert (tmp_path / "f").read_text() == "mine"


def test_names_that_are_not_utf8_can_be_written():
    assert utf8('{"ä": "' + os.fsdecode(b"\xff") + '"}') == '{"ä": "\\udcff"}'.encode()
