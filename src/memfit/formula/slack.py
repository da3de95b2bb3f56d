"""What the caching allocator holds beyond what is allocated, and the band around a prediction.

The shares come from replaying traced steps of real modules through the simulated allocator (memfit.allocator), not
from measured runs: a single stream loses a few percent to rounding and unsplit blocks; sharded runs allocate gathered
weights and reductions on streams of their own, whose free blocks no other stream can use.
"""

from __future__ import annotations

from memfit.formula.dims import Int
from memfit.ledger import Band, Ledger


def slack_bytes(transient: Int, resident: Int, *, sharded: bool) -> Int:
    """Reserved minus allocated at the peak.

    Args:
        transient: bytes at the peak that come and go within a step (activations, logits, workspaces, buffers).
        resident: bytes that stay (weights, gradients, optimizer).
        sharded: gathered weights and reductions run on their own streams.
    """
    return transient * (12 if sharded else 8) // 100 + resident * (3 if sharded else 1) // 100


def bands(ledger: Ledger, *, sharded: bool) -> dict[str, Band]:
    """The ranges that hold nine runs in ten, for allocated, reserved and device; ``need`` decides about fitting.

    ``need`` is what must be there for the run to finish: the allocator gives cached blocks back before it fails, so the
    need lies between allocated and reserved.
    """
    outside = ledger.device_bytes - ledger.reserved_bytes
    allocated = Band.around(ledger.allocated_bytes, 0.06, 0.07)
    reserved = Band.around(ledger.reserved_bytes, 0.10, 0.18 if sharded else 0.14)
    device = Band(reserved.low + outside, ledger.device_bytes, reserved.high + outside * 5 // 4)
    middle = (ledger.allocated_bytes * 2 + ledger.reserved_bytes) // 3 + outside
    need = Band(middle * 93 // 100, middle, middle * 109 // 100)
    return {"allocated": allocated, "reserved": reserved, "device": device, "need": need}
