"""Heads: feature map (N, F, h, w) in, logits (N, C) out.

Owns HEADS. Everything that a head needs for scoring is in its parameters and buffers, and is thus
exported. Never sees an image or a target; label statistics are passed as TrainLabels.

    >>> head = HEADS["csra"](8, 27, Config(), None)
    >>> head(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 27])
"""

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuswide.config import Config
from nuswide.data.label_stats import TrainLabels, label_vectors


class LinearHead(nn.Sequential):
    """Average pool, dropout, linear."""

    def __init__(self, n_features: int, n_labels: int, dropout: float) -> None:
        super().__init__(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(dropout),
                linear=nn.Linear(n_features, n_labels),
            )
        )


class MaxPool(nn.Module):
    """Global max pooling: (N, F, h, w) to (N, F)."""

    def forward(self, features: Tensor) -> Tensor:
        """Pool a feature map."""
        return features.amax(dim=(2, 3))


class MaxPoolHead(nn.Sequential):
    """Max pool, dropout, linear."""

    def __init__(self, n_features: int, n_labels: int, dropout: float) -> None:
        super().__init__(
            OrderedDict(
                pool=MaxPool(),
                dropout=nn.Dropout(dropout),
                linear=nn.Linear(n_features, n_labels),
            )
        )


class CsraHead(nn.Module):
    """Class-specific residual attention: a label's mean score plus lamb times its attended score.

    A location's score for a label is the product of its features and the label's normalized
    weights; there is no bias. Each of n_heads has its own temperature, the last of several takes
    the maximum, and their logits are summed.
    Source: Zhu and Wu 2021, arXiv:2108.02456.
    """

    def __init__(self, n_features: int, n_labels: int, *, n_heads: int, lamb: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.empty(n_labels, n_features, 1, 1) for _ in range(n_heads)
        )
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight)  # only their direction matters
        self.lamb = lamb
        # The paper's choice for 1, 2, 4, 6 and 8 heads, interpolated for the others.
        finite = (1, 2, 4) if n_heads == 4 else range(1, max(2, n_heads))
        self.temperatures = [float(t) for t in finite] + [math.inf] * (n_heads > 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (N, C) of a feature map."""
        logits = [
            self._attend(F.conv2d(features, F.normalize(weight, dim=1)).flatten(2), t)
            for weight, t in zip(self.weights, self.temperatures, strict=True)
        ]
        return torch.stack(logits).sum(dim=0)

    def _attend(self, scores: Tensor, temperature: float) -> Tensor:
        """Turn the scores of locations (N, C, L) into logits."""
        if math.isinf(temperature):
            attended = scores.amax(dim=2)
        else:
            attended = (torch.softmax(temperature * scores, dim=2) * scores).sum(dim=2)
        return scores.mean(dim=2) + self.lamb * attended


class GcnHead(nn.Module):
    """ML-GCN: a graph network over the labels produces their classifiers.

    Two graph convolutions map the label vectors (C, D) to weights (C, F), which are multiplied by
    the max-pooled features; there is no bias. The graph is derived from train's labels and not part
    of the state; the vectors are, because a file of them may change.
    Source: Chen et al. 2019, arXiv:1904.03582.
    """

    graph: Tensor
    _WIDTHS = (300, 1024)  # of a learned vector, and between the convolutions

    def __init__(
        self, n_features: int, train: TrainLabels, *, vectors: str, threshold: float
    ) -> None:
        super().__init__()
        self.pool = MaxPool()
        self.register_buffer("graph", label_graph(train, threshold=threshold), persistent=False)
        if vectors == "learned":
            start = F.normalize(torch.randn(len(train.names), self._WIDTHS[0]), dim=1)
            self.vectors: Tensor = nn.Parameter(start)
        else:
            self.register_buffer("vectors", torch.from_numpy(label_vectors(vectors, train)))
        self.inner = nn.Linear(self.vectors.shape[1], self._WIDTHS[1], bias=False)
        self.outer = nn.Linear(self._WIDTHS[1], n_features, bias=False)
        for layer in (self.inner, self.outer):  # as in the authors' code
            bound = 1 / math.sqrt(layer.out_features)
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (N, C) of a feature map."""
        hidden = F.leaky_relu(self.graph @ self.inner(self.vectors), 0.2)  # (C, 1024)
        classifiers = self.graph @ self.outer(hidden)  # (C, F)
        return self.pool(features) @ classifiers.T


def label_graph(train: TrainLabels, *, threshold: float, share: float = 0.25) -> Tensor:
    """Return the normalized adjacency matrix from label (column) to label (row); (C, C).

    A label is linked to those whose conditional probability is at least `threshold`. They share the
    weight `share`; the label itself has weight 1. As in the authors' code, where the paper's rows
    are columns.
    """
    likely = train.conditional() >= threshold  # (given, of)
    likely.flat[:: len(likely) + 1] = False
    linked = torch.from_numpy(likely).double()
    weights = share * linked / linked.sum(dim=0).clamp(min=1) + torch.eye(len(linked)).double()
    scale = weights.sum(dim=1).rsqrt()
    return (scale[:, None] * weights.T * scale).float()


class MlDecoderHead(nn.Module):
    """ML-Decoder: a query for each group of labels attends to the map, without self-attention.

    Queries are random and not trained; there are at most 100, and each predicts the logits of an
    equal share of the labels.
    Source: Ridnik et al. 2021, arXiv:2111.12933.
    """

    queries: Tensor
    _WIDTH, _HEADS, _INNER, _DROPOUT, _QUERIES = 768, 8, 2048, 0.1, 100

    def __init__(self, n_features: int, n_labels: int) -> None:
        super().__init__()
        n_queries = min(self._QUERIES, n_labels)
        width = self._WIDTH
        self.n_labels = n_labels
        self.embed = nn.Linear(n_features, width)
        self.register_buffer("queries", torch.randn(n_queries, width))
        self.attention = nn.MultiheadAttention(
            width, self._HEADS, dropout=self._DROPOUT, batch_first=True
        )
        self.inner = nn.Linear(width, self._INNER)
        self.outer = nn.Linear(self._INNER, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(self._DROPOUT)
        self.weight = nn.Parameter(torch.empty(n_queries, width, math.ceil(n_labels / n_queries)))
        self.bias = nn.Parameter(torch.zeros(n_labels))
        nn.init.xavier_normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (N, C) of a feature map."""
        tokens = F.relu(self.embed(features.flatten(2).transpose(1, 2)))  # (N, L, width)
        queries = self.queries.expand(features.shape[0], -1, -1)
        queries = self.norms[0](queries + self.dropout(queries))
        found, _ = self.attention(queries, tokens, tokens, need_weights=False)
        queries = self.norms[1](queries + self.dropout(found))
        inner = self.outer(self.dropout(F.relu(self.inner(queries))))
        queries = self.norms[2](queries + self.dropout(inner))  # (N, Q, width)
        logits = torch.einsum("nqd,qdk->nqk", queries, self.weight).flatten(1)
        return logits[:, : self.n_labels] + self.bias


def _gcn(n_features: int, n_labels: int, config: Config, train: TrainLabels | None) -> GcnHead:
    assert train is not None and len(train.names) == n_labels, (
        "its graph is derived from train's labels"
    )
    return GcnHead(n_features, train, vectors=config.gcn_vectors, threshold=config.gcn_threshold)


# Those that are made from train's labels, and so only once val is split off.
MADE_FROM_TRAIN = frozenset({"gcn"})

HEADS: dict[str, Callable[[int, int, Config, TrainLabels | None], nn.Module]] = {
    "linear": lambda f, c, config, train: LinearHead(f, c, config.dropout),
    "max_pool": lambda f, c, config, train: MaxPoolHead(f, c, config.dropout),
    "csra": lambda f, c, config, train: CsraHead(
        f, c, n_heads=config.csra_heads, lamb=config.csra_lambda
    ),
    "gcn": _gcn,
    "ml_decoder": lambda f, c, config, train: MlDecoderHead(f, c),
}
