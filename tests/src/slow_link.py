"""A slow and lossy link: carries frames between two taps that it makes, later and not all of them.

Usage: INNER OUTER SECONDS-EACH-WAY SHARE-LOST. A tap has no offloads, so that each frame comes whole and checked.
"""

import collections
import fcntl
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


delay, lost = float(sys.argv[3]), float(sys.argv[4])
chance = random.Random(1)
outer = tap(sys.argv[2])
inner = tap(sys.argv[1])
other = {inner: outer, outer: inner}
late = collections.deque()
while True:
    wait = max(0, late[0][0] - time.monotonic()) if late else None
    for fd in select.select([inner, outer], [], [], wait)[0]:
        try:
            frame = os.read(fd, 65536)
        except OSError:  # The interface isn't up yet.
            time.sleep(0.01)
            continue
        if chance.random() >= lost:
            late.append((time.monotonic() + delay, other[fd], frame))
    while late and late[0][0] <= time.monotonic():
        _, fd, frame = late.popleft()
        try:
            os.write(fd, frame)
        except OSError:  # Down, or full: lost, as on any link.
            pass
