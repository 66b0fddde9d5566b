"""The file protocol between a job's client and its pod: names in the job's root folder."""

import json
import os

JOB = "job.json"  # what to run, and for how long
LOG = "job.log"  # all that the job says
PID = "job.pid"  # process group of the job
EXIT = "job.exit"  # its exit code, when it has ended
STARTED = "job.started"  # made once, by the one runner that may start the job
HEARTBEAT = "heartbeat"  # when the client was last heard, by this machine's clock
WATCHDOG_PID, WATCHDOG_LOG = "watchdog.pid", "watchdog.log"
VERDICT = "watchdog.verdict"  # why the watchdog ended the job
SNAPSHOT = "snapshot"  # files of the run held still while they are pulled
MANIFEST = "manifest.json"


def read(root, name):
    """Return a file's text without the white space around it; "" where there is none."""
    try:
        with open(os.path.join(root, name), encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def write(root, name, text):
    """Write a file that appears whole or not at all."""
    path = os.path.join(root, name)
    part = path + ".part%d" % os.getpid()
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


def job(root):
    """Return job.json; an empty job where there is none yet."""
    return json.loads(read(root, JOB) or "{}")


def alive(pid):
    """Say whether a process runs; one that has ended and waits for its parent does not."""
    try:
        with open("/proc/%d/stat" % int(pid or 0), encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError, IndexError):
        return False
