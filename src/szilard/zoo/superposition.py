"""Networks whose superposition is known: toy models that store sparse features in few neurons."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ToySuperposition(nn.Module):
    """Autoencoders that squeeze sparse features through a bottleneck: x = W f, f' = ReLU(W^T x + b).

    A feature is uniform on [0, 1] with probability `density`, else 0. One model a density, all in one
    tensor program.

    Args:
        densities: probability that a feature is active, one a model, in (0, 1].
        features: features to store.
        neurons: width of the bottleneck.
        importance: weight of feature m in the loss is importance ** m.
        seed: of the starting weights.

    Raises:
        ValueError: a density outside (0, 1], or sizes below 1.

    Source: Elhage et al., Toy Models of Superposition (2022), arXiv 2209.10652.
    """

    densities: Tensor
    importances: Tensor

    def __init__(
        self,
        densities: Float[Tensor, "models"],
        *,
        features: int = 20,
        neurons: int = 5,
        importance: float = 0.7,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not bool(((densities > 0) & (densities <= 1)).all()):
            raise ValueError(f"densities must lie in (0, 1], but are {densities}")
        for name, value in (("features", features), ("neurons", neurons)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        generator = torch.Generator().manual_seed(seed)
        shape = (len(densities), neurons, features)
        bound = (6 / (features + neurons)) ** 0.5
        self.weight = nn.Parameter(bound * (2 * torch.rand(shape, generator=generator) - 1))
        self.bias = nn.Parameter(torch.zeros(len(densities), 1, features))
        self.register_buffer("densities", densities[:, None, None].clone())
        self.register_buffer("importances", importance ** torch.arange(float(features)))

    def draw(self, rows: int, generator: torch.Generator) -> Float[Tensor, "models rows features"]:
        """Features, from the same uniform draws for every model."""
        u = torch.rand(rows, self.weight.shape[-1], generator=generator).to(self.weight.device)
        # Given u < density, u / density is uniform again.
        return torch.where(u < self.densities, u / self.densities, 0.0)

    def hidden(
        self, f: Float[Tensor, "models rows features"]
    ) -> Float[Tensor, "models rows neurons"]:
        """The bottleneck's activations."""
        return f @ self.weight.mT

    def forward(
        self, f: Float[Tensor, "models rows features"]
    ) -> Float[Tensor, "models rows features"]:
        """The features as they come back."""
        return torch.relu(self.hidden(f) @ self.weight + self.bias)

    def fit(
        self, *, steps: int, batch_size: int = 512, learning_rate: float = 3e-3, seed: int = 0
    ) -> ToySuperposition:
        """Trains with Adam on features drawn anew each step; returns the module itself."""
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(self.parameters(), lr=learning_rate, fused=True)
        # Divided by its density, the loss of every model has one scale, and one rate serves all.
        weights = self.importances / self.densities
        for _ in range(steps):
            f = self.draw(batch_size, generator)
            loss = (weights * (f - self(f)).square()).sum() / batch_size
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return self
