"""The cache folder, and atomic writes of files."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causal_tracer import files, save_figure
from causal_tracer.cli.output import Outputs
from causal_tracer.errors import ExportError
from causal_tracer.files import PART_SUFFIX, cache_root, write_atomically
from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
from causal_tracer.results.flow import HiddenFlow
from tests.support.flows import some_flow


class TestCacheRoot:
    def test_an_argument_comes_before_the_variable_and_the_variable_before_the_users_cache(self) -> None:
        variable = {files.CACHE_VARIABLE: "/from/variable"}
        assert cache_root("/given", variable) == Path("/given")
        assert cache_root(environ=variable) == Path("/from/variable")
        assert cache_root(environ={}).name == "causal-tracer"
        assert cache_root("~/here") == Path.home() / "here"

    def test_all_that_is_kept_is_kept_below_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from causal_tracer.web.service.settings import ServiceSettings

        monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
        assert ServiceSettings.from_environment().results_folder == str(tmp_path / "results")


def full_disk(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class TestWriteAtomically:
    def test_texts_and_bytes_into_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file.txt"
        write_atomically(path, "東京\n")
        assert path.read_bytes() == "東京\n".encode()
        write_atomically(path, b"\xff")
        assert path.read_bytes() == b"\xff"
        assert [each.name for each in path.parent.iterdir()] == ["file.txt"]

    def test_a_full_disk_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
        assert path.read_text() == "old"
        assert [each.name for each in tmp_path.iterdir()] == ["file"]

    @pytest.mark.skipif(os.name != "posix", reason="folders are synced on posix only")
    def test_a_file_system_that_syncs_no_folders_is_no_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, refused = os.fsync, []

        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                refused.append(descriptor)
                raise OSError(errno.EINVAL, "Invalid argument")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        write_atomically(tmp_path / "file", "new")
        assert refused
        assert (tmp_path / "file").read_text() == "new"

    def test_a_text_that_cannot_be_encoded_costs_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with pytest.raises(UnicodeEncodeError):
            write_atomically(path, "\ud800")
        assert path.read_text() == "old"

    @pytest.mark.skipif(os.name != "posix", reason="signals")
    def test_a_writer_that_is_killed_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        code = (
            "import os, signal, sys; from pathlib import Path; from causal_tracer.files import write_atomically\n"
            "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
            "write_atomically(Path(sys.argv[1]), 'new')"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=120)
        assert done.returncode == -signal.SIGKILL
        assert path.read_text() == "old"
        (left,) = [each.name for each in tmp_path.iterdir() if each.name != "file"]
        assert left.endswith(PART_SUFFIX)

    @pytest.mark.skipif(os.name != "posix", reason="links and pipes")
    def test_a_link_stays_a_link_and_a_device_a_device(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_text("old")
        (tmp_path / "link").symlink_to("target")
        write_atomically(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_text() == "new"
        write_atomically(Path(os.devnull), "nothing")
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def drawn(flow: HiddenFlow) -> Any:
    return plot_hidden_flow_heatmap(flow, show=False)


WRITERS: dict[str, Callable[[HiddenFlow, Path], object]] = {
    "save": lambda flow, path: flow.save(path),
    "save_figure": lambda flow, path: save_figure(
        plot_hidden_flow_heatmap(flow, show=False), path.with_suffix(".html")
    ),
    "json": lambda flow, path: Outputs(json=str(path), quiet=True).write({"map": flow}),
    "csv": lambda flow, path: Outputs(csv=str(path), quiet=True).write({"map": flow}),
    "html": lambda flow, path: Outputs(html=path.with_suffix(".html"), quiet=True).write({"map": flow}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_costs_no_earlier_file_of_any_writer(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    WRITERS[writer](some_flow(), path)
    (before,) = [(each.name, each.read_bytes()) for each in tmp_path.iterdir()]
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ExportError, match="No space left"):
        WRITERS[writer](some_flow(prompt="another"), path)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [before]
