#!/usr/bin/python3
"""A build that tries what it shouldn't be able to do, and prints what came of it, a line each."""
import ctypes, errno, os, socket, sys

# What it is looking for, as a real one would know it.
sys.path.insert(0, os.getcwd())
from given import ETCD, OPEN, OTHER, RM, STATE

if os.getuid() == 0:
    # What follows would be done to the machine.
    sys.exit("a build that is root tries nothing")
libc = ctypes.CDLL(None, use_errno=True)
tmp = os.environ["TMPDIR"]


def outcome(what, *words):
    try:
        made = what(*words)
        return "done" if made is None else made
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def say(what, came):
    print(f"{what} = {came}", flush=True)


def write(path):
    with open(path, "w") as file:
        file.write("x")


def read(path):
    with open(path, "rb") as file:
        file.read()


def bind(port):
    with socket.socket() as own:
        own.bind(("127.0.0.1", port))


def connect(address, family=socket.AF_INET):
    with socket.socket(family) as own:
        own.settimeout(5)
        own.connect(address)


def listing(path):
    return outcome(lambda: sorted(os.listdir(path)))


def mount():
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
say("is root", os.getuid() == 0)
say("rights", [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")])
say("no new rights", [status["NoNewPrivs"], status["Seccomp"], status["Groups"].strip()])
say("places", [os.getcwd(), os.access(os.environ["HOME"], os.W_OK), os.access(tmp, os.W_OK)])
say("state", listing(STATE))
say("caches", [name for name in listing(STATE + "/cache") if name[0] != "."])
hidden = [STATE + "/repos", STATE + "/slugs", STATE + "/lock", STATE + "/hooks.sock", STATE + "/builds",
          "/root/.ssh", "/root/.bash_history", "/home", "/sys/class", "/sys/kernel", "/etc/shadow", "/var/lib", "/run/bazooka/uids"]
say("hidden", [path for path in hidden if os.path.exists(path)])
say("strangers", sum(1 for name in os.listdir("/proc") if name.isdigit() and int(name) > 50))
say("environment of process 1", outcome(read, "/proc/1/environ"))
for path in ("/x", "/etc/x", "/usr/x", "/proc/sys/kernel/core_pattern", "/app/x", "/tmp/x"):
    if os.getcwd() == "/app" or path == "/etc/x":
        say("write " + path, outcome(write, path))
say("write another's repository", outcome(write, f"{STATE}/repos/{OTHER}.git/HEAD"))
say("write another's cache", outcome(write, f"{STATE}/cache/{OTHER}/home/kept"))
say("write a slug", outcome(write, f"{STATE}/slugs/x"))
say("write the cache", outcome(write, tmp + "/../kept"))
say("connect etcd", outcome(connect, ("127.0.0.1", ETCD)))
say("connect etcd by another address", outcome(connect, ("127.0.0.2", ETCD)))
say("connect rm", outcome(connect, ("127.0.0.1", RM)))
say("connect another", outcome(connect, ("127.0.0.1", OPEN)))
def listeners():
    """Every listener of the machine that /proc shows, the coordinator's peer port among them."""
    found = set()
    for line in open("/proc/net/tcp").readlines()[1:] + open("/proc/net/tcp6").readlines()[1:]:
        words = line.split()
        if words[3] == "0A":
            found.add(int(words[1].split(":")[1], 16))
    return sorted(found)


say("etcd is among the listeners", ETCD in listeners())
say("reached", [port for port in listeners() if outcome(connect, ("127.0.0.1", port)) == "done"])
say("connect hooks", outcome(connect, STATE + "/hooks.sock", socket.AF_UNIX))
say("bind a port", outcome(bind, 8099))
say("bind any port", outcome(bind, 0))
say("make a device", outcome(os.mknod, tmp + "/null", 0o20666, os.makedev(1, 3)))
say("mount", outcome(mount))
say("operator's variable", os.environ.get("SECRET_OF_THE_OPERATOR"))
