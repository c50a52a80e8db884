"""What the benchmarks share: figures, the engine's socket seen from outside, CPU time of units.

A benchmark runs outside of its virtual device. It talks to the device's engine through the
device's root under /proc, so the agent is never its own witness, and it reads the CPU time of
whole units from their cgroups, so children that ended are counted too.
"""

from .device import cpu, device, image, wait_settled
from .engine import Engine, Events
from .figures import report, summary
from .target import APP, target

__all__ = [
    "APP", "Engine", "Events", "cpu", "device", "image", "report", "summary", "target",
    "wait_settled",
]  # fmt: skip
