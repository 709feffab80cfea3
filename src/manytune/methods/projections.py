"""The frozen random factors of a low-rank update, which all layers and runs of one seed and rank share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Projections:
    """Two random matrices, known by their seed: A [rank, inputs] and B [outputs, rank]."""

    seed: int
    rank: int
    inputs: int  # width of the widest input of the layers that share them
    outputs: int  # width of the widest output

    def draw(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A and B, uniform within sqrt(6 / columns) of zero, which is how peft's VeRA draws them (Kaiming).

        A snapshot holds the vectors that were trained beside them, not these matrices, so they must come out the same
        wherever it is read: they are made of PCG64's raw numbers, which NumPy's NEP 19 promises not to change.
        """
        import numpy as np  # a configuration is read before anything heavy is imported

        raw = np.random.PCG64(self.seed).random_raw(self.rank * (self.inputs + self.outputs))
        uniform = (raw >> 40).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)  # in [-1, 1), of 24 bits
        a, b = np.split(uniform, [self.rank * self.inputs])
        bounds = np.sqrt(np.float32(6) / np.array([self.inputs, self.rank], dtype=np.float32))
        return a.reshape(self.rank, -1) * bounds[0], b.reshape(-1, self.rank) * bounds[1]
