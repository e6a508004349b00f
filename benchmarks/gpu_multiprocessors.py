"""How many programs share a multiprocessor: of what one takes, and of what each architecture has."""

from dataclasses import dataclass

from convpool.gpu.offline import TARGETS, Resources


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks that reside on one share: threads, bytes of shared memory, 32-bit registers, and their number.

    Of the CUDA C++ Programming Guide's table of technical specifications; gfx942 of AMD's CDNA 3 ISA reference.
    """

    threads: int
    shared: int
    registers: int = 64 << 10
    blocks: int = 32


MULTIPROCESSORS = {
    "sm_75": Multiprocessor(1024, 64 << 10, blocks=16),
    "sm_80": Multiprocessor(2048, 164 << 10),
    "sm_86": Multiprocessor(1536, 100 << 10, blocks=16),
    "sm_89": Multiprocessor(1536, 100 << 10, blocks=24),
    "sm_90": Multiprocessor(2048, 228 << 10),
    "sm_100": Multiprocessor(2048, 228 << 10),
    "sm_120": Multiprocessor(1536, 100 << 10, blocks=24),
    "gfx942": Multiprocessor(2048, 64 << 10, 128 << 10),
}
_PARTITIONS = 4  # each with a quarter of the registers and warps that stay in it
_REGISTER_GRAIN = 8  # a thread is given so many at a time
_SHARED_RESERVED = 1 << 10  # of each block's, by CUDA from sm_80 on


def resident(target: str, warps: int, found: Resources) -> int:
    """Programs of so many warps that can reside on a multiprocessor at once."""
    has, lanes = MULTIPROCESSORS[target], TARGETS[target].warp_size
    registers = -(-max(found.registers, 1) // _REGISTER_GRAIN) * _REGISTER_GRAIN
    by_registers = has.registers // _PARTITIONS // (registers * lanes) * _PARTITIONS  # warps
    blocks = min(has.blocks, min(has.threads // lanes, by_registers) // warps)
    if found.shared:
        reserved = _SHARED_RESERVED if target not in ("sm_75", "gfx942") else 0
        blocks = min(blocks, has.shared // (found.shared + reserved))
    return blocks
