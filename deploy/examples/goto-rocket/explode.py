"""goto-rocket's fail proc: exits at once, to show how failing looks."""

import sys

print("ignition", flush=True)
sys.exit("the engine is not there")
