"""An instance that tries what it shouldn't be able to do, and says what came of it, as one line of JSON."""
import ctypes, errno, json, os, pwd, resource, socket, struct, subprocess, time

# Outside of a sandbox it would do harm.
assert os.getuid() != 0

libc = ctypes.CDLL(None, use_errno=True)
said = {}


def outcome(what):
    try:
        made = what()
        return "done" if made is None else made
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def call(number, *arguments):
    ctypes.set_errno(0)
    made = libc.syscall(number, *arguments)
    return "done" if made >= 0 else errno.errorcode[ctypes.get_errno()]


def write(path):
    with open(path, "w") as file:
        file.write("x")


def bind(kind, port, family=socket.AF_INET):
    with socket.socket(family, kind) as own:
        own.bind(("", port))


def connect(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as own:
        own.settimeout(5)
        own.connect((host, port))


def attributes(turn_ns=0):
    """What sched_setattr(2) takes, and sched_getattr(2) fills."""
    return ctypes.create_string_buffer(struct.pack("=IIQiIQQQ", 48, 0, 0, 0, 0, turn_ns, 0, 0), 48)


def own_turn_ns():
    found = attributes()
    return struct.unpack("=IIQiIQQQ", found.raw)[5] if call(315, 0, found, 48, 0) == "done" else None


status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
said["rights"] = [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
said["no_new_rights"] = [status["NoNewPrivs"], status["Seccomp"], status["Groups"].strip()]
# Its own listing is one of them.
said["open"] = len(os.listdir("/proc/self/fd")) - 1
said["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[:2]
said["strangers"] = sum(1 for name in os.listdir("/proc") if name.isdigit() and int(name) > 50)
said["user"] = [os.getuid() != 0, os.getuid() == os.getgid(), [user.pw_name for user in pwd.getpwall() if user.pw_uid == os.getuid()]]
said["places"] = [os.getcwd(), os.environ["HOME"], os.environ["TMPDIR"]]
said["seen"] = sorted(os.listdir("/"))
said["hidden"] = [path for path in os.environ["HIDDEN"].split(":") if os.path.exists(path)]
said["of_others"] = outcome(lambda: open("/proc/1/mem", "rb").close())
said["written"] = {path: outcome(lambda: write(path)) for path in ("/app/x", "/usr/x", "/etc/x", "/x", "/proc/sys/kernel/core_pattern", "/tmp/x")}
said["masked"] = [outcome(lambda: len(open(path, "rb").read())) for path in ("/proc/keys", "/proc/timer_list") if os.path.exists(path)]
said["devices"] = sorted(os.listdir("/dev"))
said["own_terminal"] = outcome(lambda: [os.close(fd) for fd in os.openpty()] and None)
said["calls"] = {
    "mount": call(165, b"none", b"/tmp", b"tmpfs", 0, None),
    "keyctl": call(250, 0, -3, 1),
    "ptrace": call(101, 16, 1, 0, 0),
    "unshare": call(272, 0x10000000),
    "setns": call(308, 0, 0),
    "clone_user": call(56, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": call(435, 0, 0),
    "bpf": call(321, 0, 0, 0),
    "io_uring": call(425, 1, 0),
    "perf": call(298, 0, 0, 0, 0, 0),
    "chroot": call(161, b"/tmp"),
    "longer_turn": call(314, 0, attributes(100_000_000), 0),
    "unknown": call(999),
}
said["turn"] = own_turn_ns()
said["sockets"] = {
    "raw": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()),
    "packet": outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "vsock": outcome(lambda: socket.socket(40, socket.SOCK_STREAM).close()),
    "mptcp": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()),
    "tcp6": outcome(lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()),
    "unix": outcome(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()),
}
own, coordinator, pm, rm, other = (int(os.environ[name]) for name in ("PORT", "COORDINATOR_PORT", "PM_PORT", "RM_PORT", "OTHER_PORT"))
said["binds"] = {
    "own": outcome(lambda: bind(socket.SOCK_STREAM, own)),
    "own6": outcome(lambda: bind(socket.SOCK_STREAM, own, socket.AF_INET6)),
    "any": outcome(lambda: bind(socket.SOCK_STREAM, 0)),
    "next": outcome(lambda: bind(socket.SOCK_STREAM, own + 1)),
    "next6": outcome(lambda: bind(socket.SOCK_STREAM, own + 1, socket.AF_INET6)),
    "datagrams": outcome(lambda: bind(socket.SOCK_DGRAM, own + 1)),
}
said["connects"] = {
    "coordinator": outcome(lambda: connect("127.0.0.1", coordinator)),
    "by_another_address": outcome(lambda: connect("127.0.0.9", coordinator)),
    "by_no_address": outcome(lambda: connect("0.0.0.0", coordinator)),
    "mapped": outcome(lambda: connect("::ffff:127.0.0.1", coordinator, socket.AF_INET6)),
    "ipv6": outcome(lambda: connect("::1", coordinator, socket.AF_INET6)),
    "bazooka_pm": outcome(lambda: connect("127.0.0.1", pm)),
    "bazooka_rm": outcome(lambda: connect("127.0.0.1", rm)),
    "another": outcome(lambda: connect("127.0.0.1", other)),
}


def effective_user_of_a_setuid_program():
    child = subprocess.Popen(["/usr/bin/su"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.05)
    # It may have ended; it isn't reaped yet.
    users = [line.split()[1:] for line in open(f"/proc/{child.pid}/status") if line.startswith("Uid:")][0]
    child.kill()
    return sorted(set(int(user) == os.getuid() for user in users))


said["setuid"] = outcome(lambda: [bool(os.stat("/usr/bin/su").st_mode & 0o4000), effective_user_of_a_setuid_program()])
said["too_much_in_tmp"] = outcome(lambda: os.posix_fallocate(os.open("/tmp/much", os.O_CREAT | os.O_WRONLY), 0, 65 << 20))
said["shared_memory"] = outcome(lambda: write("/dev/shm/x"))


def take_all_files():
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        for fd in taken:
            os.close(fd)
        return [errno.errorcode[error.errno], len(taken) <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]]


said["too_many_files"] = take_all_files()
print(json.dumps(said), flush=True)
time.sleep(1000)
