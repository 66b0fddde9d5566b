"""ssh and rsync against a real sshd, and the same calls on a local folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from atlas.errors import AtlasError
from atlas.remote import shell as shells
from atlas.remote.errors import CommandFailed, ShellLost
from atlas.remote.provider import Endpoint
from atlas.remote.shell import LocalShell, SshShell, job_options, pin
from tests.remote.sshd import Lab, lab

__all__ = ["lab"]


@pytest.fixture(params=["local", "ssh"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> LocalShell | SshShell:
    if request.param == "local":
        (tmp_path / "root").mkdir()
        return LocalShell(tmp_path / "root")
    return request.getfixturevalue("lab").shell()


def test_arguments_arrive_as_they_are(shell: SshShell) -> None:
    odd = ["a b", "$HOME", "`id`", "'", '"', "\\", "*", "", "é\n"]
    with shell:
        out = shell.run(["python3", "-c", "import sys; print(sys.argv[1:])", *odd])
        assert out.decode().strip() == str(odd)
        assert shell.run(["cat"], stdin=b"\0secret\n") == b"\0secret\n"
        shell.run(["sh", "-c", "echo here > file"])
        assert shell.read("file") == b"here\n"


def test_ctrl_c_on_a_command_that_has_ended_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(process: subprocess.Popen[bytes], *_: object) -> None:
        process.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shells._finish(["true"], None, 10)


def test_a_command_that_fails_is_no_lost_connection(shell: SshShell) -> None:
    with shell:
        for code in (1, 3, 255):
            with pytest.raises(CommandFailed, match="went wrong") as failed:
                shell.run(["sh", "-c", f"echo went wrong >&2; exit {code}"])
            assert failed.value.code in (code, 254)


def test_reading_on_from_an_offset(shell: SshShell) -> None:
    with shell:
        assert shell.read("none") == b""
        data = bytes(range(256)) * 400
        shell.run(["sh", "-c", "cat > 'a b'"], stdin=data)
        assert shell.read("a b", 1000) == data[1000:]
        assert shell.read("a b", len(data)) == b"" == shell.read("a b", len(data) + 5)


def test_folders_and_files_go_and_come(shell: SshShell, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "in ner").mkdir(parents=True)
    (source / "in ner" / "x y.bin").write_bytes(os.urandom(50000))
    (source / "empty").touch()
    with shell:
        shell.push(source, "data")
        shell.push(source, "data")  # again, into the same place
        shell.push(source / "empty", "deep/er/file")
        assert shell.read("deep/er/file") == b""
        shell.pull("data", tmp_path / "back", ["in ner/x y.bin", "empty"])
        with pytest.raises(CommandFailed):
            shell.pull("data", tmp_path / "back", ["no such"])
    back = tmp_path / "back" / "in ner" / "x y.bin"
    assert back.read_bytes() == (source / "in ner" / "x y.bin").read_bytes()


def test_a_command_without_an_answer_is_a_lost_connection(shell: SshShell) -> None:
    with shell:
        with pytest.raises(ShellLost, match="no answer"):
            shell.run(["sleep", "30"], timeout=0.5)
        assert shell.run(["echo", "still"]) == b"still\n"


def test_the_folder_of_a_pod_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ShellLost, match="gone"):
        LocalShell(tmp_path / "none").run(["true"])


def test_a_wrong_host_key_is_refused_and_nothing_is_sent(lab: Lab, tmp_path: Path) -> None:
    shells.make_key(tmp_path / "other")
    other = (tmp_path / "other.pub").read_text()
    wrong = tmp_path / "wrong"
    endpoint = type(lab.endpoint)(
        lab.endpoint.host, lab.endpoint.port, lab.endpoint.user, other.strip()
    )
    pin(wrong, endpoint)
    with (
        pytest.raises(AtlasError, match="another host key") as refused,
        SshShell(endpoint, "job", job_options(lab.key, wrong)),
    ):
        pass
    assert not isinstance(refused.value, ShellLost)  # never tried again
    assert not (lab.machine.home / "job").exists()


@pytest.mark.parametrize(("port", "name"), [(22, "host"), (2222, "[host]:2222")])
def test_a_pinned_host_key_is_found_under_the_name_that_ssh_looks_for(
    port: int, name: str, lab: Lab, tmp_path: Path
) -> None:
    pin(tmp_path / "hosts", Endpoint("host", port, "root", lab.endpoint.host_key))
    find = ["ssh-keygen", "-F", name, "-f", str(tmp_path / "hosts")]
    assert subprocess.run(find, capture_output=True, check=False).returncode == 0


def test_a_host_key_that_nobody_told_is_kept_and_then_checked(lab: Lab, tmp_path: Path) -> None:
    hosts = tmp_path / "fresh"
    with SshShell(lab.endpoint, "job", job_options(lab.key, hosts)) as there:
        there.run(["true"])
    kept = hosts.read_text()
    assert str(lab.endpoint.host_key).split()[1] in kept
    (hosts).write_text(kept.replace("AAAA", "AAAB")[: len(kept)])
    with pytest.raises(AtlasError), SshShell(lab.endpoint, "job", job_options(lab.key, hosts)):
        pass


def test_a_connection_that_drops_is_lost_and_comes_back(lab: Lab) -> None:
    with lab.shell() as there:
        threading.Timer(0.5, lab.machine.cut).start()
        with pytest.raises(ShellLost):
            there.run(["sleep", "20"], timeout=25)
        lab.machine.mend()
        assert there.run(["echo", "back"]) == b"back\n"


def test_a_cut_transfer_leaves_no_torn_file(lab: Lab, tmp_path: Path) -> None:
    with lab.shell() as there:
        there.run(["sh", "-c", "mkdir -p run; head -c 80000000 /dev/urandom > run/big"])
        threading.Timer(0.15, lab.machine.cut).start()
        try:
            there.pull("run", tmp_path / "in", ["big"])
        except ShellLost:
            assert not (tmp_path / "in" / "big").exists()
        lab.machine.mend()
        time.sleep(0.1)
        there.pull("run", tmp_path / "in", ["big"])
        assert (tmp_path / "in" / "big").stat().st_size == 80_000_000


def test_a_full_disk_there_is_said(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(bytes(3_000_000))
    with lab.shell() as there:
        there.run(["sh", "-c", "mkdir small"])
        small = lab.machine.home / "job" / "small"
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
        if os.system(" ".join(mount) + " 2>/dev/null"):
            pytest.skip("cannot mount a small disk here")
        try:
            with pytest.raises(CommandFailed, match="disk is full"):
                there.push(source, "small/big")
        finally:
            os.system(f"umount {small}")


def test_tools_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "which", lambda tool: None if tool == "rsync" else "/usr/bin/" + tool
    )
    with pytest.raises(AtlasError, match="rsync is not on this machine: install rsync"):
        shells.require_tools()


@pytest.mark.parametrize("what", ["run", "read", "push", "pull"])
def test_a_folder_that_is_taken_away_under_a_call_is_a_lost_way(
    shell: SshShell | LocalShell, what: str, tmp_path: Path
) -> None:
    """Which a job answers with another pod; a command that failed would end it."""
    take = 'd=$(pwd); cd ..; mv "$d" "$d.going"; rm -rf "$d.going"; exit 1'
    calls = {
        "run": lambda: shell.run(["python3", "-m", "no.such.module"]),
        "read": lambda: shell.read("job.log"),
        "push": lambda: shell.push(Path(__file__), "deep/er/file"),
        "pull": lambda: shell.pull("run", tmp_path / "back", ["metrics.csv"]),
    }
    with shell:
        with pytest.raises(ShellLost, match="gone"):
            shell.run(["sh", "-c", take])
        with pytest.raises(ShellLost, match="gone"):
            calls[what]()
        with pytest.raises(ShellLost, match="gone"):  # and nothing made it anew
            shell.run(["true"])
