"""goto-rocket's job proc: works on without a port, a line every second."""

import itertools
import time

for second in itertools.count():
    print(f"T plus {second}", flush=True)
    time.sleep(1)
