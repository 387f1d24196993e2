"""The optimisers of the trainings that start from nothing: Muon for the matrices, AdamW for everything else."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

MATRIX_RATE = 0.02


class Optimisers:
    """Muon for the weights of a model's linear layers, AdamW for its other weights, on one schedule.

    Narrow transformers trained from nothing learn several times faster this way than by AdamW alone.

    Args:
        model: what needs no gradient is left out.
        heads: parameters used in training only.
        rate: AdamW's full learning rate.
        betas: AdamW's.
        clip: largest norm of the gradient; None for any.
        paces: of parts of the model that have learned before: the share of the rates that they get.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Iterable[nn.Parameter] = (),
        rate: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        clip: float | None = None,
        paces: Mapping[nn.Module, float] | None = None,
    ) -> None:
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        linear = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
        pace = {weight: share for part, share in (paces or {}).items() for weight in part.parameters()}

        def by_pace(weights: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
            groups: dict[float, list[nn.Parameter]] = {}
            for weight in weights:
                groups.setdefault(pace.get(weight, 1.0), []).append(weight)
            return [{"params": group, "pace": share} for share, group in groups.items()]

        matrices = by_pace(weight for weight in self.trained if weight in linear)
        others = by_pace([*(weight for weight in self.trained if weight not in linear), *heads])
        muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01)
        adam = torch.optim.AdamW(others, lr=rate, betas=betas, weight_decay=0.01)
        self.parts = {"muon": muon, "adam": adam}
        self._rates = {"muon": MATRIX_RATE, "adam": rate}
        self._clip = clip

    def step(self, loss: torch.Tensor, progress: float) -> None:
        """One step down the loss; `progress` is the share of the steps done, in [0, 1)."""
        for name, optimizer in self.parts.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * group["pace"] * schedule(progress)
            optimizer.zero_grad()
        loss.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self._clip)
        for optimizer in self.parts.values():
            optimizer.step()


def schedule(progress: float) -> float:
    """Share of the full learning rate: a short rise, a plateau, a straight fall to zero."""
    return min(1.0, progress / 0.03 + 0.01, (1 - progress) / 0.5)
