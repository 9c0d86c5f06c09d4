"""Adam without the compiler that PyTorch's class imports, and the schedule of its rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam


def cosine_to_zero(step: int, steps: int) -> float:
    """Factor of the learning rate, from 1 at the start to 0 at the end; the end may move when training goes on."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))


class Adam:
    """PyTorch's Adam as a function.

    The class ``torch.optim.Adam`` imports the compiler, which takes longer than the steps of a small pair.

    Args:
        parameters: what is optimized, in place.
        epsilon: added to the root of the mean square of gradients.
        betas: how much of the means of gradients, and of their squares, is kept at each step.
    """

    def __init__(
        self, parameters: list[Tensor], epsilon: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.parameters, self.epsilon, self.betas = parameters, epsilon, betas
        self.means, self.squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        self.steps = [torch.tensor(0.0) for _ in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """One step along gradients of the parameters."""
        first, second = self.betas
        adam(
            self.parameters, list(gradients), self.means, self.squares, [], self.steps, foreach=False, fused=False,
            amsgrad=False, beta1=first, beta2=second, lr=learning_rate, weight_decay=0.0, eps=self.epsilon,
            maximize=False,
        )  # fmt: skip
