from .attention import (
    attention_entropy,
    attention_entropy_floor,
    attention_entropy_from_qk,
)
from .categorical import (
    conditional_entropy,
    cross_entropy,
    entropy,
    js_divergence,
    kl_divergence,
    mutual_information,
    perplexity,
    renyi_entropy,
    tsallis_entropy,
)
from .estimators import entropy_from_counts, kozachenko_leonenko, ksg_mutual_information
from .ordinal import (
    entropy_complexity,
    entropy_complexity_bounds,
    hc_envelope,
    missing_patterns,
    ordinal_distribution,
    ordinal_patterns,
    ordinal_statistics,
    pattern_ranks,
    permutation_entropy,
    statistical_complexity,
)
from .repetition import ngram_diversity, rep_l, repetition, zipf_coefficient
from .sequence import (
    masked_mean,
    running_mean,
    sliding_window_mean,
    sliding_window_token_entropy,
)
from .spectral import (
    DiffusionSpectrum,
    DSMIResult,
    adjacency_spectral_entropy,
    binned_entropy,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
    diffusion_spectrum,
    effective_rank,
    gram_entropy,
    matrix_entry_entropy,
    size_matched_mutual_information,
    von_neumann_entropy,
)
from .tokens import TokenStatistics, linear_token_statistics, token_statistics

__all__ = [
    # categorical
    "entropy",
    "perplexity",
    "renyi_entropy",
    "tsallis_entropy",
    "cross_entropy",
    "kl_divergence",
    "js_divergence",
    "conditional_entropy",
    "mutual_information",
    # tokens
    "token_statistics",
    "linear_token_statistics",
    "TokenStatistics",
    # sequence
    "masked_mean",
    "sliding_window_mean",
    "running_mean",
    "sliding_window_token_entropy",
    # attention
    "attention_entropy",
    "attention_entropy_floor",
    "attention_entropy_from_qk",
    # repetition
    "repetition",
    "rep_l",
    "ngram_diversity",
    "zipf_coefficient",
    # estimators
    "entropy_from_counts",
    "kozachenko_leonenko",
    "ksg_mutual_information",
    # ordinal
    "ordinal_patterns",
    "ordinal_distribution",
    "ordinal_statistics",
    "pattern_ranks",
    "permutation_entropy",
    "statistical_complexity",
    "missing_patterns",
    "entropy_complexity",
    "entropy_complexity_bounds",
    "hc_envelope",
    # spectral
    "von_neumann_entropy",
    "gram_entropy",
    "effective_rank",
    "diffusion_spectrum",
    "DiffusionSpectrum",
    "diffusion_spectral_entropy",
    "diffusion_spectral_mutual_information",
    "DSMIResult",
    "size_matched_mutual_information",
    "binned_entropy",
    "matrix_entry_entropy",
    "adjacency_spectral_entropy",
]
