"""The optimisers of the trainings that start from nothing: Muon for the matrices, AdamW for everything else."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

MATRIX_RATE = 0.02


class Muon(torch.optim.Muon):
    """torch's Muon in single precision, the matrices of a shape together.

    torch's own makes its updates orthogonal in bfloat16, which takes a processor that has none twenty times as long as
    float32: for models this small, longer than the forward and the backward pass of a step.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step down the gradients; weights that have none stay as they are."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                kept = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight.grad))
                kept.lerp_(weight.grad, 1 - group["momentum"])
                alike.setdefault(weight.shape, []).append((weight, weight.grad.lerp(kept, group["momentum"])))
            for (rows, columns), pairs in alike.items():
                updates = _orthogonal(torch.stack([update for _, update in pairs]), group)
                for (weight, _), update in zip(pairs, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
        return None


def _orthogonal(matrices: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Nearly the nearest orthogonal matrices of (N, rows, columns), by Newton-Schulz steps as `group` sets them."""
    a, b, c = group["ns_coefficients"]
    upright = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if upright else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if upright else x


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
        muon = Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01)
        adam = torch.optim.AdamW(others, lr=rate, betas=betas, weight_decay=0.01)
        self.parts = {"muon": muon, "adam": adam}
        self._rates = {"muon": MATRIX_RATE, "adam": rate}
        self._clip = clip

    def step(self, loss: Tensor, progress: float) -> None:
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
