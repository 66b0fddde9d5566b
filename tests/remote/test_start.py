"""The pod's entry point as a container runs it: root in namespaces of its own, port 22 and all."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.remote.shell import make_key
from atlas.remote.steps import HERE, START
from tests.support import require_tool, skip

# What it writes at home and in /etc/ssh stays in a layer; the server stands for the provider.
POD = """
set -eu
cd {folder}
for place in "$HOME" /etc/ssh; do
  name=$(basename "$place")
  mkdir -p "layer/$name/upper" "layer/$name/work"
  mount -t overlay overlay \
    -o "lowerdir=$place,upperdir=layer/$name/upper,workdir=layer/$name/work" "$place"
done
ip link set lo up
{python} provider.py >/dev/null 2>&1 &
{watched}
{entry} > pod.log 2>&1 &
for i in $(seq 200); do
  grep -q 'Server listening' pod.log && break
  sleep 0.1
done
sed -n 's/^atlas-host-key /127.0.0.1 /p' pod.log > known_hosts
ssh -p 22 -i key -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes \
  -o UserKnownHostsFile=known_hosts -o GlobalKnownHostsFile=/dev/null root@127.0.0.1 \
  'echo "in as $(id -un)"; command -v rsync git' > said 2>&1 || true
for i in $(seq 150); do
  [ -s asked ] && break
  sleep 0.1
done
"""
PROVIDER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_DELETE(self):
        with open("asked", "a") as file:
            file.write(f"DELETE {self.path} {self.headers['Authorization']}\\n")
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8123), Handler).serve_forever()
"""


def entry() -> str:
    """The command as the provider splits the pod's `args`: at spaces, without a shell."""
    words = f"bash -c {START}".split()
    return " ".join(f"'{word}'" for word in words)


@pytest.mark.parametrize(
    ("watched", "limits", "why"),
    [
        ("", ("3", "0"), "no client came"),
        ("python3 -c 'import time; time.sleep(60)' pod.watchdog &", ("1", "5"), "the ceiling"),
    ],
)
def test_the_entry_point(watched: str, limits: tuple[str, str], why: str, tmp_path: Path) -> None:
    require_tool("sshd" if os.path.exists("/usr/bin/sshd") else "/usr/sbin/sshd")
    spaces = [require_tool("unshare"), "--mount", "--net", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*spaces, "true"], capture_output=True, check=False).returncode:
        skip("no namespaces here")
    public = make_key(tmp_path / "key")
    (tmp_path / "provider.py").write_text(PROVIDER)
    script = POD.format(folder=tmp_path, python=sys.executable, watched=watched, entry=entry())
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(Path.home()),
        "ATLAS_START": base64.b64encode((HERE / "pod" / "start.sh").read_bytes()).decode(),
        "ATLAS_FIRST_CONTACT": limits[0],
        "ATLAS_SECONDS": limits[1],
        "ATLAS_RUNPOD_URL": "http://127.0.0.1:8123",
        "PUBLIC_KEY": public,
        "RUNPOD_POD_ID": "pod1",
        "RUNPOD_API_KEY": "pod_KEY",
    }
    before = sorted(Path("/etc/ssh").iterdir())
    done = subprocess.run([*spaces, "bash", "-c", script], env=environment, capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip
    Path("/tmp/atlas-start").unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "pod.log").read_text()
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == "in as root" and len(said) == 3, (said, log)
    assert f"atlas: {why}" in log and "atlas-host-key ssh-ed25519 AAAA" in log
    assert (tmp_path / "asked").read_text() == "DELETE /v2/pods/pod1 Bearer pod_KEY\n"
    assert sorted(Path("/etc/ssh").iterdir()) == before  # this machine's own keys are untouched
