from .baselines import (
    degree_uncertainty,
    kernel_language_entropy,
    lexical_dissimilarity,
    semantic_entropy,
)
from .embedding import embedder
from .inv_entropy import (
    InvEntropy,
    InvEntropyDetails,
    InvEntropyResult,
    bootstrapped,
    inv_entropy,
    plot_uncertainty,
    tsu,
)
from .perturb import GAAP, Paraphrase, WordNet

__all__ = [
    # inv-entropy
    "InvEntropy",
    "InvEntropyDetails",
    "inv_entropy",
    "InvEntropyResult",
    "bootstrapped",
    "tsu",
    "plot_uncertainty",
    # perturbations and embeddings
    "Paraphrase",
    "GAAP",
    "WordNet",
    "embedder",
    # what it is compared with
    "semantic_entropy",
    "degree_uncertainty",
    "kernel_language_entropy",
    "lexical_dissimilarity",
]
