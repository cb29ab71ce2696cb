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
said["hidden_folders"] = [outcome(lambda: len(os.listdir(path))) for path in ("/proc/bus", "/proc/fs") if os.path.exists(path)]
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
    "unix_pair": outcome(lambda: [end.close() for end in socket.socketpair()] and None),
    # The kernel itself would answer EOPNOTSUPP.
    "other_pair": outcome(lambda: [end.close() for end in socket.socketpair(socket.AF_INET)] and None),
}
NAMES = ("PORT", "COORDINATOR_PORT", "PM_PORT", "RM_PORT", "OTHER_PORT", "OPEN_PORT", "CLOSED_PORT", "DATAGRAM_PORT")
own, coordinator, pm, rm, other, opened, closed, datagrams = (int(os.environ[name]) for name in NAMES)
said["binds"] = {
    "own": outcome(lambda: bind(socket.SOCK_STREAM, own)),
    "own6": outcome(lambda: bind(socket.SOCK_STREAM, own, socket.AF_INET6)),
    "any": outcome(lambda: bind(socket.SOCK_STREAM, 0)),
    "next": outcome(lambda: bind(socket.SOCK_STREAM, own + 1)),
    "next6": outcome(lambda: bind(socket.SOCK_STREAM, own + 1, socket.AF_INET6)),
    "datagrams": outcome(lambda: bind(socket.SOCK_DGRAM, own + 1)),
    "second": outcome(lambda: bind(socket.SOCK_STREAM, 9464)),
    "privileged": outcome(lambda: bind(socket.SOCK_STREAM, 80)),
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
    "opened": outcome(lambda: connect("127.0.0.1", opened)),
    "closed": outcome(lambda: connect("127.0.0.1", closed)),
    "metadata": outcome(lambda: connect("169.254.169.254", 80)),
    "metadata6": outcome(lambda: connect("fd00:ec2::254", 80, socket.AF_INET6)),
    "of_machine": outcome(lambda: connect(os.environ["OWN_ADDRESS"], other)),
}


def listeners():
    """Every listener of the machine that /proc shows, the coordinator's peer port among them."""
    found = set()
    for line in open("/proc/net/tcp").readlines()[1:] + open("/proc/net/tcp6").readlines()[1:]:
        words = line.split()
        if words[3] == "0A":
            found.add(int(words[1].split(":")[1], 16))
    return sorted(found)


# Of the host's own range the ports of other instances are open.
first, last = (int(port) for port in os.environ["RANGE"].split("-"))
tried = [port for port in listeners() if port != opened and not first <= port <= last]
said["reached"] = [coordinator in tried, [
    [host, port]
    for port in tried
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), (os.environ["OWN_ADDRESS"], socket.AF_INET))
    if outcome(lambda: connect(host, port, family)) == "done"
]]


def send(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        own.sendto(b"from an instance", (host, port))


said["sends"] = {
    "wildcard": outcome(lambda: send("127.0.0.1", datagrams)),
    "mapped": outcome(lambda: send("::ffff:127.0.0.1", datagrams, socket.AF_INET6)),
    "metadata": outcome(lambda: send("169.254.169.254", 53)),
}


def abstract():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.connect("\0" + os.environ["ABSTRACT"])


def own_abstract():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        listener.bind("\0own-of-an-instance")
        listener.listen()
        other.connect("\0own-of-an-instance")


said["abstract"] = [outcome(abstract), outcome(own_abstract)]


def talk(bound, reached, port, family=socket.AF_INET):
    """The names that both ends of a connection over its own loopback have."""
    with socket.socket(family, socket.SOCK_STREAM) as listener, socket.socket(family, socket.SOCK_STREAM) as caller:
        listener.bind((bound, port))
        listener.listen()
        caller.settimeout(5)
        caller.connect((reached, port))
        other, peer = listener.accept()
        other.close()
        return [listener.getsockname()[:2], caller.getpeername()[:2], caller.getsockname()[0], peer[0]]


def exchange(bound, reached, port, family=socket.AF_INET):
    """Datagrams there and back, between sockets that aren't connected."""
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:
        server.bind((bound, port))
        for end in (server, client):
            end.settimeout(5)
        client.sendto(b"there", (reached, port))
        heard, sender = server.recvfrom(16)
        server.sendto(b"back", sender)
        heard, replier = client.recvfrom(16)
        return [sender[0], replier[:2], heard.decode()]


def dual(port):
    """One listener on `::`, reached by IPv4 and by IPv6."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
        listener.bind(("::", port))
        listener.listen()
        connect("127.0.0.1", port)
        connect("::1", port, socket.AF_INET6)


def only_six(port):
    """Two listeners on every address, as of programs that ask for each family."""
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for listener, address in ((four, "0.0.0.0"), (six, "::")):
            listener.bind((address, port))
            listener.listen()
        connect("127.0.0.1", port)
        four.accept()
        connect("::1", port, socket.AF_INET6)
        six.settimeout(5)
        six.accept()


def picked():
    """A port that the kernel picks on every address is reached by loopback too."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("", 0))
        listener.listen()
        connect("127.0.0.1", listener.getsockname()[1])


said["loopback"] = {
    "four": outcome(lambda: talk("127.0.0.1", "127.0.0.1", 9464)),
    "every": outcome(lambda: talk("0.0.0.0", "127.0.0.1", 9466)),
    "six": outcome(lambda: talk("::1", "::1", 9465, socket.AF_INET6)),
    "dual": outcome(lambda: dual(9467)),
    "only_six": outcome(lambda: only_six(9468)),
    "picked": outcome(picked),
    "datagrams": outcome(lambda: exchange("127.0.0.1", "127.0.0.1", 8125)),
    "datagrams_every": outcome(lambda: exchange("0.0.0.0", "127.0.0.1", 8126)),
    "datagrams6": outcome(lambda: exchange("::1", "::1", 8127, socket.AF_INET6)),
}


def effective_user_of_a_setuid_program():
    child = subprocess.Popen(["/usr/bin/su"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.05)
    # It may have ended; it isn't reaped yet.
    users = [line.split()[1:] for line in open(f"/proc/{child.pid}/status") if line.startswith("Uid:")][0]
    child.kill()
    return sorted(set(int(user) == os.getuid() for user in users))


def raise_core_limit():
    # ValueError: the soft limit is above the hard one, which only a privileged process raises.
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        return "done"
    except ValueError:
        return "refused"


said["core"] = [list(resource.getrlimit(resource.RLIMIT_CORE)), raise_core_limit()]
said["setuid"] = outcome(lambda: [bool(os.stat("/usr/bin/su").st_mode & 0o4000), effective_user_of_a_setuid_program()])
said["too_much_in_tmp"] = outcome(lambda: os.posix_fallocate(os.open("/tmp/much", os.O_CREAT | os.O_WRONLY), 0, 600 << 20))
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
