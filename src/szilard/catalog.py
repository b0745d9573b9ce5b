"""The map of the product: one literal entry a method. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

FAMILIES: dict[str, str] = {
    "decoding": "act while text is being generated",
    "rl": "shape reinforcement learning with verifiable rewards",
    "posttraining": "guide preference training, distillation and unlearning",
    "detection": "tell whether data, text or traffic is what it claims to be",
    "uncertainty": "say how sure an answer is",
    "compression": "spend fewer bits on prompts, weights and codes",
    "layers": "replace layers so that training stays stable",
    "representations": "read what activations hold",
    "adaptation": "adapt a classifier while it is being used",
    "generative": "keep a generator from collapsing",
    "audio": "separate sources by per-bin classification",
    "dialog": "compose knowledge into dialog",
    "dynamics": "tell order, chaos and noise apart in time series",
    "physics": "infer models and irreversibility from averages and trajectories",
    "semantics": "measure information that has a meaning",
    "quantum": "clean up measured bit strings",
}
"""What the methods of each family do, in one phrase."""


class UnknownMethodError(ValueError):
    """No method has this slug; the message names the nearest ones."""


@dataclass(frozen=True, slots=True)
class Method:
    """One published method.

    Attributes:
        slug: its name on the command line, of its experiment and of its docs page.
        name: the name its readers know it by.
        family: a key of `FAMILIES`, and the subpackage that holds it.
        paper: title and venue.
        year: of first publication.
        arxiv: arXiv identifier, None where there is none.
        measures: the entropy or information it looks at.
        acts: what it does with the measurement.
        entry_point: `module:attribute` of its main object; None while it is planned.
        extras: the extras of Szilard that its use (not its experiment) needs.
    """

    slug: str
    name: str
    family: str
    paper: str
    year: int
    arxiv: str | None
    measures: str
    acts: str
    entry_point: str | None = None
    extras: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """`ready` or `planned`."""
        return "planned" if self.entry_point is None else "ready"

    @property
    def experiment(self) -> str:
        """Dotted name of the module that holds its experiment."""
        return "szilard.experiments." + self.slug.replace("-", "_")

    @property
    def url(self) -> str | None:
        """Where the paper is."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None


def find(slug: str) -> Method:
    """Returns the method called `slug`.

    Raises:
        UnknownMethodError: there is none; the message suggests the nearest slugs.

    Examples:
        >>> find("peccary").family
        'dynamics'
    """
    for method in METHODS:
        if method.slug == slug:
            return method
    near = get_close_matches(slug, [method.slug for method in METHODS], n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `szilard list` shows all"
    raise UnknownMethodError(f"there is no method {slug!r}{hint}")


METHODS: tuple[Method, ...] = (
    # --- decoding ---------------------------------------------------------------------------------
    Method(
        slug="typical-sampling",
        name="Locally typical sampling",
        family="decoding",
        paper="Locally Typical Sampling (TACL 2023)",
        year=2022,
        arxiv="2202.00666",
        measures="surprisal of each candidate token against the conditional entropy",
        acts="keeps the tokens whose surprisal is closest to the entropy",
        entry_point="szilard.decoding:TypicalLogitsProcessor",
        extras=("language",),
    ),
    Method(
        slug="entropy-adaptive-decoding",
        name="Entropy adaptive decoding",
        family="decoding",
        paper="Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference",
        year=2025,
        arxiv="2502.06833",
        measures="rolling entropy of the next-token distribution",
        acts="switches between a small and a large model while generating",
        entry_point="szilard.decoding:EntropyAdaptiveDecoder",
        extras=("language",),
    ),
    Method(
        slug="uscd",
        name="USCD",
        family="decoding",
        paper="USCD: Improving Code Generation of LLMs by Uncertainty-Aware Selective Contrastive Decoding",
        year=2024,
        arxiv="2409.05923",
        measures="spread of the next-token distribution",
        acts="subtracts an example-free prompt's distribution where the model is unsure",
        entry_point="szilard.decoding:USCDLogitsProcessor",
        extras=("language", "models", "data"),
    ),
    Method(
        slug="diffadapt",
        name="DiffAdapt",
        family="decoding",
        paper="DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference (ICLR 2026)",
        year=2025,
        arxiv="2510.19669",
        measures="generation entropy against problem difficulty",
        acts="picks an easy, normal or hard inference strategy per question with a hidden-state probe",
        entry_point="szilard.decoding:DiffAdapt",
        extras=("language", "models"),
    ),
    Method(
        slug="v-reason",
        name="V-Reason",
        family="decoding",
        paper="Video Reasoning without Training (CVPR 2026 Findings)",
        year=2025,
        arxiv="2510.17045",
        measures="output entropy while decoding",
        acts="steers it by optimising an offset on the last layer's value cache",
    ),
    Method(
        slug="reasoning-utility",
        name="Reasoning utility",
        family="decoding",
        paper="Measuring Reasoning Utility in LLMs via Conditional Entropy Reduction",
        year=2025,
        arxiv="2508.20395",
        measures="conditional entropy of the answer after each reasoning step",
        acts="scores, prunes and stops chains of thought",
        entry_point="szilard.decoding:ReasoningUtility",
        extras=("language", "models"),
    ),
    # --- rl ---------------------------------------------------------------------------------------
    Method(
        slug="clip-cov-kl-cov",
        name="Clip-Cov / KL-Cov",
        family="rl",
        paper="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
        year=2025,
        arxiv="2505.22617",
        measures="covariance of token log-probability and advantage, which drives the entropy",
        acts="restrains the few tokens of highest covariance so that entropy does not collapse",
        entry_point="szilard.rl:clip_cov_loss",
    ),
    Method(
        slug="steer",
        name="STEER",
        family="rl",
        paper="Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective (ACL 2026)",
        year=2025,
        arxiv="2510.10150",
        measures="each token's first-order effect on policy entropy",
        acts="reweights the policy loss token by token",
    ),
    Method(
        slug="pear",
        name="PEAR",
        family="rl",
        paper="PEAR: Phase Entropy Aware Reward for Efficient Reasoning (ICLR 2026)",
        year=2025,
        arxiv="2510.08026",
        measures="mean entropy of the thinking and the answer phase",
        acts="charges correct answers for excess entropy, so that reasoning gets shorter",
    ),
    Method(
        slug="ares",
        name="ARES / AEPO",
        family="rl",
        paper="ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping (ICLR 2026)",
        year=2025,
        arxiv="2510.08457",
        measures="token entropy over a sliding window",
        acts="spends exploration where a window stays uncertain, by difficulty",
    ),
    Method(
        slug="ettrl",
        name="ETTRL",
        family="rl",
        paper="ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning via Entropy Mechanism",
        year=2025,
        arxiv="2508.11356",
        measures="token entropy at fork points and of whole responses",
        acts="forks rollouts at uncertain tokens and reshapes advantages, without labels",
    ),
    Method(
        slug="ulorl",
        name="UloRL",
        family="rl",
        paper="UloRL: An Ultra-Long Output Reinforcement Learning Approach for Advancing LLMs' Reasoning Abilities",
        year=2025,
        arxiv="2507.19766",
        measures="mean token entropy of a response",
        acts="masks well-mastered tokens when it falls under a target; segments long rollouts",
    ),
    Method(
        slug="ttrv",
        name="TTRV",
        family="rl",
        paper="TTRV: Test-Time Reinforcement Learning for Vision Language Models (CVPR 2026)",
        year=2025,
        arxiv="2510.06783",
        measures="frequency and entropy of sampled answers",
        acts="rewards them, and adapts a vision-language model without labels",
    ),
    Method(
        slug="tool-light",
        name="Tool-Light",
        family="rl",
        paper="Toward Effective Tool-Integrated Reasoning via Self-Evolved Preference Learning (ICLR 2026)",
        year=2025,
        arxiv="2509.23285",
        measures="token entropy along tool-using trajectories",
        acts="branches where it is high and builds preference pairs for sufficient, not excessive, calls",
    ),
    # --- posttraining -----------------------------------------------------------------------------
    Method(
        slug="likelihood-overoptimisation",
        name="Likelihood over-optimisation monitor",
        family="posttraining",
        paper="Understanding Likelihood Over-optimisation in Direct Alignment Algorithms",
        year=2024,
        arxiv="2410.11677",
        measures="entropy and mass of the top-k next-token distribution",
        acts="flags the step at which preference training starts to hurt",
    ),
    Method(
        slug="alignment-asymptotics",
        name="Asymptotics of alignment",
        family="posttraining",
        paper="Asymptotics of Language Model Alignment (ISIT 2024)",
        year=2024,
        arxiv="2404.01730",
        measures="KL divergence from the reference policy",
        acts="gives the optimal policy at a KL budget and what best-of-N attains",
    ),
    Method(
        slug="plackett-luce-distillation",
        name="Plackett-Luce distillation",
        family="posttraining",
        paper="PLD: A Choice-Theoretic List-Wise Knowledge Distillation (NeurIPS 2025)",
        year=2025,
        arxiv="2506.12542",
        measures="likelihood of the teacher's ranking under the student",
        acts="replaces cross-entropy plus distillation by one convex loss",
    ),
    Method(
        slug="response-selection",
        name="Response-strategy selection",
        family="posttraining",
        paper="Efficient Response Generation Method Selection for Fine-Tuning Large Language Models (Findings of EMNLP 2025)",
        year=2025,
        arxiv="2502.11779",
        measures="self-aligned perplexity of candidate responses",
        acts="ranks ways of producing training data and picks one",
    ),
    Method(
        slug="selective-amnesia",
        name="Selective amnesia",
        family="posttraining",
        paper="SHA256 at SemEval-2025 Task 4: Selective Amnesia - Constrained Unlearning for LLMs via Knowledge Isolation",
        year=2025,
        arxiv="2504.12996",
        measures="cross-entropy on what to forget and on what to keep",
        acts="unlearns in the MLPs that causal tracing names",
    ),
    # --- detection --------------------------------------------------------------------------------
    Method(
        slug="self-critique",
        name="Self-Critique",
        family="detection",
        paper="Detecting Data Contamination from Reinforcement Learning Post-training for Large Language Models (ICLR 2026)",
        year=2025,
        arxiv="2510.09259",
        measures="similarity of entropy sequences of an answer and its self-critique",
        acts="detects benchmark problems used in RL post-training",
    ),
    Method(
        slug="zero-shot-text-tests",
        name="Zero-shot tests for generated text",
        family="detection",
        paper="Zero-Shot Statistical Tests for LLM-Generated Text Detection using Finite Sample Concentration Inequalities",
        year=2025,
        arxiv="2501.02406",
        measures="log-perplexity minus average entropy",
        acts="decides with a p-value whether a model wrote a text",
    ),
    Method(
        slug="gru-svm",
        name="GRU-SVM",
        family="detection",
        paper="A Neural Network Architecture Combining GRU and SVM for Intrusion Detection in Network Traffic Data (ICMLC 2018)",
        year=2017,
        arxiv="1709.03082",
        measures="cross-entropy against squared hinge as the output loss",
        acts="classifies event records with a margin-trained recurrent network",
    ),
    # --- uncertainty ------------------------------------------------------------------------------
    Method(
        slug="inv-entropy",
        name="Inv-Entropy",
        family="uncertainty",
        paper="Inv-Entropy: A Fully Probabilistic Framework for Uncertainty Quantification in Language Models",
        year=2025,
        arxiv="2506.09684",
        measures="entropy of the question given the answer, over perturbed questions",
        acts="says how unsure a black-box model is",
        entry_point="szilard.uncertainty:InvEntropy",
        extras=("embeddings",),
    ),
    # --- compression ------------------------------------------------------------------------------
    Method(
        slug="llmlingua-2",
        name="LLMLingua-2",
        family="compression",
        paper="LLMLingua-2: Data Distillation for Efficient and Faithful Task-Agnostic Prompt Compression (Findings of ACL 2024)",
        year=2024,
        arxiv="2403.12968",
        measures="keep-probability of every word, against self-information",
        acts="shortens prompts by deleting words",
    ),
    Method(
        slug="information-capacity",
        name="Information capacity",
        family="compression",
        paper="Information Capacity: Evaluating the Efficiency of Large Language Models via Text Compression",
        year=2025,
        arxiv="2511.08066",
        measures="bits of text compressed per unit of inference compute",
        acts="compares models of different sizes and tokenizers by one number",
    ),
    Method(
        slug="mec-bottleneck",
        name="Minimum entropy coupling with bottleneck",
        family="compression",
        paper="Minimum Entropy Coupling with Bottleneck (NeurIPS 2024)",
        year=2024,
        arxiv="2410.21666",
        measures="entropy of a coupling and of its code",
        acts="couples two distributions through a rate-limited code",
    ),
    Method(
        slug="q-vlm",
        name="Q-VLM",
        family="compression",
        paper="Q-VLM: Post-training Quantization for Large Vision-Language Models (NeurIPS 2024)",
        year=2024,
        arxiv="2410.08119",
        measures="entropy of activations as a proxy of cross-layer dependence",
        acts="partitions a model into blocks and searches quantisation ranges jointly",
    ),
    # --- layers -----------------------------------------------------------------------------------
    Method(
        slug="sigma-reparam",
        name="Sigma-reparam",
        family="layers",
        paper="Stabilizing Transformer Training by Preventing Attention Entropy Collapse (ICML 2023)",
        year=2023,
        arxiv="2303.06296",
        measures="attention entropy per head",
        acts="reparametrises weights by their spectral norm so that it can't collapse",
        entry_point="szilard.layers:sigma_reparam",
    ),
    Method(
        slug="crrelu",
        name="CRReLU / EAFO",
        family="layers",
        paper="A Method on Searching Better Activation Functions (ICLR 2025)",
        year=2024,
        arxiv="2405.12954",
        measures="differential entropy of an activation's output",
        acts="derives the correction that lowers it, as a trainable activation",
        entry_point="szilard.layers:CRReLU",
    ),
    Method(
        slug="entropy-guided-attention",
        name="Entropy-guided attention",
        family="layers",
        paper="Entropy-Guided Attention for Private LLMs (PPAI at AAAI 2025)",
        year=2025,
        arxiv="2501.03489",
        measures="attention entropy per head, against collapse and overload",
        acts="regularises it with learnable thresholds in models with few nonlinearities",
        entry_point="szilard.layers:EntropyBand",
    ),
    # --- representations --------------------------------------------------------------------------
    Method(
        slug="diffusion-spectral-entropy",
        name="Diffusion spectral entropy",
        family="representations",
        paper="Assessing Neural Network Representations During Training Using Noise-Resilient Diffusion Spectral Entropy (CISS 2024)",
        year=2023,
        arxiv="2312.04823",
        measures="entropy of a point cloud's diffusion spectrum, and its mutual information",
        acts="watches and compares representations in any dimension",
        entry_point="szilard.representations:DiffusionSpectralEntropy",
    ),
    Method(
        slug="effective-features",
        name="Effective features",
        family="representations",
        paper="Superposition as Lossy Compression: Measure with Sparse Autoencoders and Connect to Adversarial Vulnerability (TMLR 2025)",
        year=2025,
        arxiv="2512.13568",
        measures="exponential entropy of sparse-autoencoder activations",
        acts="counts the features a layer holds in superposition",
        entry_point="szilard.representations:effective_features",
    ),
    Method(
        slug="neural-code",
        name="Neural code",
        family="representations",
        paper="Neural networks behave as hash encoders: An empirical study",
        year=2021,
        arxiv="2101.05490",
        measures="redundancy and entropy of binary activation patterns",
        acts="reads what simple classifiers can tell from the codes",
        entry_point="szilard.representations:NeuralCode",
    ),
    Method(
        slug="pretraining-dynamics",
        name="Pretraining dynamics",
        family="representations",
        paper="The Fine Line: Navigating Large Language Model Pretraining with Down-streaming Capability Analysis",
        year=2024,
        arxiv="2404.01204",
        measures="loss and ability of intermediate checkpoints",
        acts="compares, predicts and reads capability curves",
        entry_point="szilard.representations:DynamicsTable",
    ),
    # --- adaptation -------------------------------------------------------------------------------
    Method(
        slug="deyo",
        name="DeYO",
        family="adaptation",
        paper="Entropy is not Enough for Test-Time Adaptation: From the Perspective of Disentangled Factors (ICLR 2024)",
        year=2024,
        arxiv="2403.07366",
        measures="prediction entropy, and its change when shape is destroyed",
        acts="adapts a classifier on the samples that can be trusted",
    ),
    Method(
        slug="open-set-tta",
        name="Wisdom-of-crowds filter",
        family="adaptation",
        paper="Towards Open-Set Test-Time Adaptation Utilizing the Wisdom of Crowds in Entropy Minimization (ICCV 2023)",
        year=2023,
        arxiv="2308.06879",
        measures="confidence against the original model's",
        acts="drops samples that lost confidence before entropy is minimised",
    ),
    # --- generative, audio, dialog ----------------------------------------------------------------
    Method(
        slug="manifold-entropy-gan",
        name="Manifold entropy estimation",
        family="generative",
        paper="Combating Mode Collapse in GANs via Manifold Entropy Estimation (AAAI 2023)",
        year=2022,
        arxiv="2208.12055",
        measures="nearest-neighbour entropy of discriminator embeddings",
        acts="maximises it so that a GAN does not collapse",
    ),
    Method(
        slug="singing-voice-separation",
        name="Ideal-binary-mask CNN",
        family="audio",
        paper="Singing Voice Separation Using a Deep Convolutional Neural Network Trained by Ideal Binary Mask and Cross Entropy (Neural Computing and Applications 2018)",
        year=2018,
        arxiv="1812.01278",
        measures="cross-entropy against the ideal binary mask",
        acts="separates voice from accompaniment bin by bin",
    ),
    Method(
        slug="mds-s2",
        name="MDS-S2",
        family="dialog",
        paper="Dual Semantic Knowledge Composed Multimodal Dialog Systems (SIGIR 2023)",
        year=2023,
        arxiv="2305.09990",
        measures="cross-entropy beside a loss on latent semantics",
        acts="composes attribute and relation knowledge into multimodal dialog",
    ),
    # --- dynamics ---------------------------------------------------------------------------------
    Method(
        slug="peccary",
        name="PECCARY",
        family="dynamics",
        paper="PECCARY: A Novel Approach for Characterizing Orbital Complexity, Stochasticity, and Regularity (ApJ 2025)",
        year=2024,
        arxiv="2407.11970",
        measures="permutation entropy and statistical complexity on the series' own clock",
        acts="labels a series regular, complex or stochastic",
        entry_point="szilard.dynamics:Peccary",
    ),
    Method(
        slug="chaos-benchmark",
        name="Chaos benchmark",
        family="dynamics",
        paper="Chaos as an interpretable benchmark for forecasting and data-driven modelling (NeurIPS 2021)",
        year=2021,
        arxiv="2110.05266",
        measures="Lyapunov, dimension and entropy invariants of over 130 chaotic systems",
        acts="scores forecasters against measured unpredictability",
    ),
    Method(
        slug="information-koopman",
        name="Information-shaped Koopman",
        family="dynamics",
        paper="Information Shapes Koopman Representation (ICLR 2026)",
        year=2025,
        arxiv="2510.13025",
        measures="mutual information and von Neumann entropy of a linear latent model",
        acts="keeps it coherent and full, for forecasting and spectra",
        entry_point="szilard.dynamics:InformationKoopman",
    ),
    # --- physics, semantics, quantum --------------------------------------------------------------
    Method(
        slug="entropy-production",
        name="Score-based entropy production",
        family="physics",
        paper="Deep learning probability flows and entropy production rates in active matter (PNAS 2024)",
        year=2023,
        arxiv="2309.12991",
        measures="entropy production rate from a learned score",
        acts="maps where a driven many-particle system breaks time reversal",
        entry_point="szilard.physics:entropy_production",
    ),
    Method(
        slug="maxent-mechanics",
        name="Maximum-entropy mechanics",
        family="physics",
        paper="Information Theory and Statistical Mechanics Revisited (J. Stat. Phys. 2011)",
        year=2011,
        arxiv="1105.5662",
        measures="entropy under measured constraints",
        acts="builds physical models one constraint at a time, at rest and in motion",
        entry_point="szilard.physics:MaxEnt",
    ),
    Method(
        slug="semantic-information",
        name="Semantic information",
        family="semantics",
        paper="A Semantic Generalization of Shannon's Information Theory and Applications (Entropy 2025)",
        year=2025,
        arxiv="2510.15871",
        measures="semantic mutual information through truth functions",
        acts="classifies, learns labels and fits mixtures by matching channels",
    ),
    Method(
        slug="q-cluster",
        name="Q-Cluster",
        family="quantum",
        paper="Q-Cluster: Quantum Error Mitigation Through Noise-Aware Unsupervised Learning (IEEE QCE 2025)",
        year=2025,
        arxiv="2504.10801",
        measures="Hamming structure of measured bit strings",
        acts="reshapes counts by noise-aware clustering",
    ),
)
