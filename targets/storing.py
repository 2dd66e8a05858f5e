"""What users are told about matrices that no target can hold as 4-bit codes of a lattice."""

from __future__ import annotations

from collections.abc import Sequence

from converter.checkpoint.weight import LatticeFormat, Weight


def off_lattice_warnings(
    target: str, matrices: Sequence[Weight], lattice: LatticeFormat, format: str, *, in_blocks: bool
) -> list[str]:
    """A line about those of ``matrices`` that are not on ``lattice``; none if all are.

    ``format`` is the target's type for them; if it works ``in_blocks``, matrices whose rows are no multiple
    of the lattice's block keep the checkpoint's type.
    """
    off = [weight for weight in matrices if weight.lattice != lattice]
    if not off:
        return []
    share = sum(weight.size for weight in off) / sum(weight.size for weight in matrices)
    odd = [weight for weight in off if weight.columns % lattice.block] if in_blocks else []
    parts = []
    if len(odd) < len(off):
        parts.append(f"{len(off) - len(odd)} are stored as {format}")
    if odd:
        parts.append(
            f"{len(odd)} keep the checkpoint's type, as their rows are no multiple of {lattice.block} (the "
            f"first is {odd[0].name}, with an input dimension of {odd[0].columns})"
        )
    return [
        f"{target}: {share:.2%} of the weights ({len(off)} of {len(matrices)} matrices) lie on no 4-bit "
        f"lattice: {'; '.join(parts)}"
    ]
