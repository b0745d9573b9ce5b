"""A network's on/off patterns as codes of its inputs: recorded, packed into bits, counted and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped, UInt8
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from szilard.measures._checks import log_base
from szilard.measures.categorical import renyi_entropy
from szilard.measures.estimators import entropy_from_counts
from szilard.representations.recorder import ActivationRecorder

if TYPE_CHECKING:
    import plotly.graph_objects as go

Layers: TypeAlias = str | Sequence[str] | type[nn.Module] | tuple[type[nn.Module], ...]
Phase = Literal["under", "critical", "sufficient"]

NEAR = 1e-6
"""A pre-activation this close to 0 may fall on the other side in another precision or on another device."""

_ROWS = 4096  # rows that are unpacked at once
_RELU_LIKE = {
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.leaky_relu_,
    F.rrelu,
    F.rrelu_,
    torch.relu,
    torch.relu_,
    torch.rrelu,
    torch.rrelu_,
    Tensor.relu,
    Tensor.relu_,
}


@dataclass(frozen=True, eq=False)
class PackedCodes:
    """Codes of n inputs, eight units a byte.

    Attributes:
        packed: one row an input; the first unit is the highest bit of the first byte, and what is left
            of the last byte is 0.
        width: units of a code.
        layers: which units belong to which layer, in the order in which the layers ran.
        near_zero: share of the pre-activations within 1e-6 of 0, whose bits another precision or device
            may flip; NaN where pre-activations were not seen.

    Examples:
        >>> bits = np.array([[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]], dtype=bool)
        >>> codes = PackedCodes.from_bits(bits)
        >>> len(codes), codes.width, codes.redundancy(), round(codes.entropy(base=2), 12)
        (4, 3, 0.25, 1.5)
        >>> codes.hamming()[0]
        array([0, 0, 1, 2], dtype=int32)

    Source: He, Lei, Ji & Tao (2021), Neural networks behave as hash encoders: An empirical study,
    arXiv 2101.05490; entropy and collisions are this library's addition.
    """

    packed: UInt8[np.ndarray, "n bytes"]
    width: int
    layers: Mapping[str, slice]
    near_zero: float = math.nan

    @classmethod
    def from_bits(
        cls, bits: Bool[np.ndarray, "n width"], layers: Mapping[str, slice] | None = None
    ) -> PackedCodes:
        """Packs codes that are there as one boolean a unit.

        Raises:
            ValueError: bits is no boolean matrix, or holds no row or no column.
        """
        if bits.ndim != 2 or bits.dtype != np.bool_ or not bits.size:
            raise ValueError(
                f"bits must be a boolean matrix with rows and columns, but is {bits.dtype} of shape "
                f"{bits.shape}"
            )
        width = bits.shape[1]
        return cls(np.packbits(bits, axis=1), width, layers or {"": slice(0, width)})

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, rows: Any) -> PackedCodes:
        """The codes of some inputs: a slice, a mask or an array of their numbers."""
        return PackedCodes(self.packed[rows], self.width, self.layers, self.near_zero)

    def unpack(self) -> Bool[np.ndarray, "n width"]:
        """One boolean a unit: eight times the memory."""
        return np.unpackbits(self.packed, axis=1, count=self.width).view(np.bool_)

    def layer(self, which: int | str) -> PackedCodes:
        """The codes of one layer alone, by its place in `layers` or its name.

        Raises:
            KeyError: no layer of that name.
            IndexError: no layer at that place.
        """
        name = list(self.layers)[which] if isinstance(which, int) else which
        units = self.layers[name]
        keep = np.zeros(self.width, dtype=bool)
        keep[units] = True
        return self._chosen(keep, {name: slice(0, units.stop - units.start)})

    def units(self, keep: Bool[np.ndarray, " width"]) -> PackedCodes:
        """The codes of some units alone, whatever their layers.

        Raises:
            ValueError: keep has another length, or keeps nothing.
        """
        if keep.shape != (self.width,) or not keep.any():
            raise ValueError(
                f"keep must hold {self.width} booleans, at least one of them True, but has shape "
                f"{keep.shape} and {np.count_nonzero(keep)} True"
            )
        return self._chosen(keep, {"": slice(0, int(np.count_nonzero(keep)))})

    def varying(self) -> Bool[np.ndarray, " width"]:
        """Which units are on for some inputs and off for others."""
        on = np.bitwise_or.reduce(self.packed, axis=0)
        always = np.bitwise_and.reduce(self.packed, axis=0)
        return np.unpackbits(on & ~always, count=self.width).view(np.bool_)

    def counts(self) -> Int[np.ndarray, " distinct"]:
        """How many inputs share each distinct code, in the order in which the codes first occur."""
        counts = np.bincount(self._first)
        return counts[counts > 0]

    def redundancy(self) -> float:
        """Share of the inputs that a code fewer would do without: (n - distinct codes) / n.

        0 where every input has a code of its own. It depends on n: compare codes of equally many
        inputs, or with `random_redundancy`.
        """
        return 1 - len(self.counts()) / len(self)

    def entropy(self, *, order: float = 1.0, base: float | None = None) -> float:
        """Entropy of the code of an input drawn at random: -sum over codes of (n_c / n) log (n_c / n).

        Args:
            order: of Rényi's entropy; 1 is Shannon's, 2 the collision entropy.
            base: unit of the result (2 for bits); nats by default.

        Returns:
            From 0 (one code for all) to log n, which it is if and only if the redundancy is 0.

        Raises:
            ValueError: a negative order or a bad base.
        """
        if order == 1:
            return float(entropy_from_counts(self.counts(), base=base))
        return float(renyi_entropy(self.counts() / len(self), alpha=order, base=base))

    def deficit(self, *, base: float | None = None) -> float:
        """What the codes lose of the identity of an input: log n - entropy, in nats or in `base`."""
        return math.log(len(self)) * log_base(base) - self.entropy(base=base)

    def collisions(self) -> float:
        """Probability that two different inputs share their code: sum of n_c (n_c - 1) / (n (n - 1)).

        Raises:
            ValueError: there is one input only.
        """
        n = len(self)
        if n < 2:
            raise ValueError("a collision needs two inputs, but there is one code")
        counts = self.counts().astype(np.float64)
        return float(counts @ (counts - 1)) / (n * (n - 1))

    def hamming(self, other: PackedCodes | None = None) -> Int[np.ndarray, "n m"]:
        """In how many units each code differs from each of `other`, or from each of these.

        Raises:
            ValueError: the others have another width.
        """
        from szilard.kernels import codes

        other = self if other is None else self._alike(other, "other")
        return codes.distances(self._words, other._words, torch.get_num_threads())

    def nearest(
        self, queries: PackedCodes, k: int
    ) -> tuple[Int[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        """Of these codes, the k that differ from each query in the fewest units.

        Args:
            queries: codes of the same units.
            k: how many.

        Returns:
            The distances in units, ascending, and the numbers of the codes; of codes at the same
            distance, the first come first.

        Raises:
            ValueError: queries of another width, or k not in [1, n].
        """
        from szilard.kernels import codes

        if not 1 <= k <= len(self):
            raise ValueError(f"k must be from 1 to the {len(self)} codes, but is {k}")
        queries = self._alike(queries, "queries")
        return codes.nearest(queries._words, self._words, k, torch.get_num_threads())

    @cached_property
    def _words(self) -> np.ndarray:
        from szilard.kernels import codes

        return codes.words(self.packed)

    @cached_property
    def _first(self) -> np.ndarray:
        from szilard.kernels import codes

        return codes.equal_rows(self._words)

    def _alike(self, other: PackedCodes, name: str) -> PackedCodes:
        if other.width != self.width:
            raise ValueError(f"{name} must have {self.width} units, but has {other.width}")
        return other

    def _chosen(self, keep: np.ndarray, layers: Mapping[str, slice]) -> PackedCodes:
        if keep.all():
            return PackedCodes(self.packed, self.width, layers, self.near_zero)
        place = np.flatnonzero(keep)
        parts = []
        for start in range(0, len(self), _ROWS):
            bits = np.unpackbits(self.packed[start : start + _ROWS], axis=1, count=self.width)
            parts.append(np.packbits(bits[:, place], axis=1))
        return PackedCodes(np.concatenate(parts), len(place), layers, self.near_zero)


@dataclass(frozen=True, eq=False)
class ChannelSums:
    """What a code is made of where codes would be too long: every channel, summed over space.

    Real numbers, no bits: no redundancy can be read from them.

    Attributes:
        values: one row an input.
        layers: which channels belong to which layer.

    Examples:
        >>> sums = ChannelSums(np.array([[0.0, 4.0], [2.0, 1.0]], dtype=np.float32), {"a": slice(0, 2)})
        >>> sums.scaled()
        array([[0.  , 1.  ],
               [0.5 , 0.25]], dtype=float32)

    Source: He et al. (2021), arXiv 2101.05490, the networks for ImageNet.
    """

    values: Float32[np.ndarray, "n channels"]
    layers: Mapping[str, slice]

    def scaled(self, like: ChannelSums | None = None) -> Float32[np.ndarray, "n channels"]:
        """Divides each layer by the range of its values in `like` (the training inputs), or here.

        Raises:
            ValueError: `like` has other layers.
        """
        like = self if like is None else like
        if like.layers != self.layers:
            raise ValueError(
                f"like must have the layers {[*self.layers]}, but has {[*like.layers]}"
            )
        values = self.values.copy()
        for channels in self.layers.values():
            spread = float(np.ptp(like.values[:, channels]))
            values[:, channels] /= spread or 1.0
        return values


class NeuralCode:
    """The code that a network gives to each input: which of its ReLUs are on.

    By default every call of a ReLU-like function counts (ReLU, ReLU6, leaky and randomised ReLU, as a
    module or as a function, also where one module is called several times), in the order of the calls;
    the codes of other activations (GELU, SiLU) come from naming their types or modules. A unit is on
    where the output exceeds the threshold, strictly. The network runs without gradients in evaluation
    mode, and its modes are restored.

    Args:
        model: a network whose first axis is the batch, or a fitted `MLPClassifier` or `MLPRegressor` of
            scikit-learn with ReLUs.
        layers: "relu", or dotted names as in `model.named_modules()`, or types of modules.
        threshold: of the output.
        batch_size: inputs a forward pass, where the inputs do not come in batches.

    Raises:
        ValueError: unknown names, no module of these types, no ReLUs in scikit-learn's network, a
            threshold that is not finite, batch_size below 1.

    Examples:
        A network of one input with the units x + 1, -x and x - 2:

        >>> model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0]]))
        ...     _ = model[0].bias.copy_(torch.tensor([1.0, 0.0, -2.0]))
        >>> codes = NeuralCode(model).encode(torch.tensor([[-3.0], [-2], [-0.5], [0.3], [1], [3], [5]]))
        >>> codes.unpack().astype(int)[:3]
        array([[0, 1, 0],
               [0, 1, 0],
               [1, 1, 0]])
        >>> round(codes.redundancy(), 4), codes.layers
        (0.4286, {'1': slice(0, 3, None)})

    Source: He, Lei, Ji & Tao (2021), Neural networks behave as hash encoders: An empirical study,
    arXiv 2101.05490, section 3.
    """

    def __init__(
        self,
        model: nn.Module | BaseEstimator,
        layers: Layers = "relu",
        *,
        threshold: float = 0.0,
        batch_size: int = 256,
    ) -> None:
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite, but is {threshold}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        if isinstance(model, nn.Module):
            self._model: nn.Module | None = model
            self._names = None if layers == "relu" else _module_names(model, layers)
        else:
            if layers != "relu":
                raise ValueError(f"layers must be 'relu' for scikit-learn's, but is {layers!r}")
            _check_perceptron(model)
            self._model, self._perceptron = None, model
        self._threshold = threshold
        self._batch_size = batch_size

    @overload
    def encode(self, X: Any, *, aggregate: None = None) -> PackedCodes: ...

    @overload
    def encode(self, X: Any, *, aggregate: Literal["sum"]) -> ChannelSums: ...

    def encode(
        self,
        X: Shaped[Tensor, "n *dims"]
        | Shaped[np.ndarray, "n *dims"]
        | Mapping[str, Tensor]
        | Iterable[Any],
        *,
        aggregate: Literal["sum"] | None = None,
    ) -> PackedCodes | ChannelSums:
        """Codes of the inputs.

        Args:
            X: a tensor or array of inputs, a mapping of tensors passed as keyword arguments, or a loader:
                batches of either, or tuples that begin with one (what follows, labels, is not used).
            aggregate: "sum" gives each channel's sum over space instead of bits.

        Raises:
            ValueError: no inputs, activations that are not finite, no ReLU was called, a layer whose
                first axis is not the batch, or layers that change between batches.
        """
        if aggregate not in (None, "sum"):
            raise ValueError(f"aggregate must be None or 'sum', but is {aggregate!r}")
        parts: list[np.ndarray] = []
        layout: dict[str, int] = {}
        near, seen = 0, 0
        with _evaluating(self._model):
            for batch in _batches(X, self._batch_size):
                calls = _Calls(self._threshold if aggregate is None else None)
                n = self._run(batch, calls)
                if n == 0:
                    continue
                widths = calls.widths(n)
                if parts and widths != layout:
                    raise ValueError(
                        f"X: all batches must run the same layers, but {widths} follows {layout}"
                    )
                layout = widths
                values = np.concatenate([kept for _, kept in calls.kept], axis=1)
                parts.append(np.packbits(values, axis=1) if aggregate is None else values)
                near, seen = near + calls.near, seen + calls.seen
        if not parts:
            raise ValueError("X must hold at least one input, but holds none")
        ends = np.cumsum([0, *layout.values()]).tolist()
        layers = {name: slice(*ends[i : i + 2]) for i, name in enumerate(layout)}
        whole = np.concatenate(parts)
        if aggregate == "sum":
            return ChannelSums(whole, layers)
        return PackedCodes(whole, ends[-1], layers, near / seen if seen else math.nan)

    def _run(self, batch: Any, calls: _Calls) -> int:
        """Runs a batch, shows its activations to `calls` and says how many inputs it held."""
        if isinstance(batch, list | tuple):
            batch = batch[0]
        if self._model is None:
            return _run_perceptron(self._perceptron, np.asarray(batch), calls)
        parameter = next(self._model.parameters(), None)
        device = None if parameter is None else parameter.device
        if isinstance(batch, np.ndarray):
            batch = torch.from_numpy(batch)
            if parameter is not None and batch.is_floating_point():
                batch = batch.to(parameter.dtype)
        n = len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)
        if n == 0:
            return 0
        with ExitStack() as stack:
            if self._names is None:
                stack.enter_context(_ReLUCalls(self._model, calls))
            else:
                for name in self._names:
                    # Each call is taken as it happens, so that the order is that of execution.
                    recorder = ActivationRecorder(
                        self._model,
                        name,
                        reduce=partial(calls.see, name),
                        fold=lambda state, batch: None,
                    )
                    stack.enter_context(recorder)
            if isinstance(batch, Mapping):
                self._model(**{key: value.to(device) for key, value in batch.items()})
            else:
                self._model(batch.to(device))
        if not calls.kept:
            raise ValueError(
                "layers: the model's forward called no ReLU-like function; name its activations, or "
                "give their types"
                if self._names is None
                else f"layers: none of {self._names} has run"
            )
        return n


class _Calls:
    """What the recorded layers of one batch gave, in the order of their calls."""

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self.kept: list[tuple[str, np.ndarray]] = []
        self.near = 0
        self.seen = 0

    def see(self, name: str, output: Tensor) -> Tensor:
        if not bool(output.isfinite().all()):
            raise ValueError(f"X: layer {name!r} has activations that are not finite")
        if self._threshold is not None:
            kept = (output > self._threshold).flatten(1)
        else:
            kept = output.float().flatten(2).sum(2) if output.ndim > 2 else output.float()
        self.kept.append((name, kept.cpu().numpy()))
        return kept

    def see_before(self, inputs: Tensor) -> None:
        self.near += int((inputs.abs() < NEAR).sum())
        self.seen += inputs.numel()

    def widths(self, n: int) -> dict[str, int]:
        """Units of each call by the layer's name; the second call of one layer is `name#2`."""
        widths: dict[str, int] = {}
        times: dict[str, int] = {}
        for name, kept in self.kept:
            if len(kept) != n:
                raise ValueError(
                    f"layers: the first axis of {name!r} must be the {n} inputs, but has {len(kept)}"
                )
            times[name] = times.get(name, 0) + 1
            widths[name if times[name] == 1 else f"{name}#{times[name]}"] = kept.shape[1]
        return widths


class _ReLUCalls(TorchFunctionMode):
    """Shows every ReLU-like call to `calls`, under the name of the module that makes it."""

    def __init__(self, model: nn.Module, calls: _Calls) -> None:
        super().__init__()
        self._model = model
        self._calls = calls
        self._running: list[str] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _ReLUCalls:
        for name, module in self._model.named_modules():
            enter = lambda *_, name=name: self._running.append(name)  # noqa: E731
            leave = lambda *_: (self._running.pop(), None)[1]  # noqa: E731
            self._handles.append(module.register_forward_pre_hook(enter))
            self._handles.append(module.register_forward_hook(leave, always_call=True))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        while self._handles:
            self._handles.pop().remove()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _RELU_LIKE:
            return func(*args, **kwargs)
        # Before the call: one in place overwrites its input.
        self._calls.see_before(args[0] if args else kwargs["input"])
        output = func(*args, **kwargs)
        self._calls.see(self._running[-1] if self._running else "", output)
        return output


def _module_names(model: nn.Module, layers: Any) -> list[str]:
    if isinstance(layers, str):
        names = [layers]
    elif isinstance(layers, type) or (layers and all(isinstance(kind, type) for kind in layers)):
        kinds = layers if isinstance(layers, type) else tuple(layers)
        names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
        if not names:
            raise ValueError(f"layers: the model has no module of {layers}")
    else:
        names = list(layers)
    ActivationRecorder(model, names)  # refuses unknown names
    return names


def _check_perceptron(model: Any) -> None:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if not isinstance(model, MLPClassifier | MLPRegressor):
        raise ValueError(
            "model must be a torch.nn.Module or scikit-learn's MLPClassifier or MLPRegressor, but is "
            f"{type(model)}"
        )
    check_is_fitted(model)
    if model.activation != "relu":
        raise ValueError(f"model must have ReLUs, but its activation is {model.activation!r}")


def _run_perceptron(model: Any, x: np.ndarray, calls: _Calls) -> int:
    for i, (weights, bias) in enumerate(
        zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True), 1
    ):
        before = torch.from_numpy(x @ weights + bias)
        calls.see_before(before)
        calls.see(f"hidden {i}", before.relu())
        x = before.relu().numpy()
    return len(x)


@contextmanager
def _evaluating(model: nn.Module | None) -> Iterator[None]:
    if model is None:
        yield
        return
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _batches(X: Any, size: int) -> Iterator[Any]:
    if isinstance(X, Mapping):
        lengths = {len(value) for value in X.values()}
        if len(lengths) != 1:
            raise ValueError(f"X must hold equally many inputs a key, but holds {lengths}")
        for start in range(0, lengths.pop(), size):
            yield {key: value[start : start + size] for key, value in X.items()}
    elif isinstance(X, Tensor | np.ndarray):
        for start in range(0, len(X), size):
            yield X[start : start + size]
    else:
        yield from X


class NeuralCodeEncoder(TransformerMixin, BaseEstimator):
    """Inputs to bits, in the manner of scikit-learn: one boolean column a unit.

    Args:
        model: as `NeuralCode`.
        layers: as `NeuralCode`.
        threshold: as `NeuralCode`.
        batch_size: as `NeuralCode`.

    Attributes:
        width_: units of a code.
        layers_: which columns belong to which layer.

    Examples:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> X = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> pipeline = make_pipeline(NeuralCodeEncoder(model), LogisticRegression())
        >>> pipeline.fit(X, X[:, 0] > 0).predict(X).shape
        (50,)

    Source: He et al. (2021), arXiv 2101.05490.
    """

    def __init__(
        self,
        model: Any,
        layers: Any = "relu",
        *,
        threshold: float = 0.0,
        batch_size: int = 256,
    ) -> None:
        self.model = model
        self.layers = layers
        self.threshold = threshold
        self.batch_size = batch_size

    def fit(self, X: Any, y: object = None) -> NeuralCodeEncoder:
        """Learns which units there are, from the first inputs; the network is not trained.

        Raises:
            ValueError: as `NeuralCode`.
        """
        codes = self._encode(X[: self.batch_size])
        self.width_ = codes.width
        self.layers_ = codes.layers
        return self

    def transform(self, X: Any) -> Bool[np.ndarray, "n width"]:
        """Codes of the inputs.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: as `NeuralCode.encode`, or codes of another width than `fit` saw.
        """
        check_is_fitted(self)
        codes = self._encode(X)
        if codes.width != self.width_:
            raise ValueError(f"X must give {self.width_} units, but gives {codes.width}")
        return codes.unpack()

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """Layer and number of every unit, as `layer[number]`."""
        check_is_fitted(self)
        names = [
            f"{name}[{i}]"
            for name, units in self.layers_.items()
            for i in range(units.stop - units.start)
        ]
        return np.array(names, dtype=object)

    def _encode(self, X: Any) -> PackedCodes:
        code = NeuralCode(
            self.model, self.layers, threshold=self.threshold, batch_size=self.batch_size
        )
        return code.encode(X)


def random_redundancy(n: int, width: int) -> float:
    """Expected redundancy of n codes drawn uniformly from all 2^width: the birthday effect.

    1 - (K / n) (1 - (1 - 1/K)^n) with K = 2^width codes.

    Args:
        n: inputs.
        width: independent, unbiased units. Real units are neither, so that a network of this width
            starts above.

    Raises:
        ValueError: n or width below 1.

    Examples:
        >>> round(random_redundancy(6000, 10), 4), round(random_redundancy(60_000, 20), 5)
        (0.8298, 0.02807)
    """
    if n < 1 or width < 1:
        raise ValueError(f"n and width must be at least 1, but are {n} and {width}")
    share = math.ldexp(1.0, -width)
    if n * share < 1e-6:
        # Below, the difference of two numbers near 1 would be rounding; this is its first term.
        return (n - 1) / 2 * share
    return max(0.0, 1 + math.expm1(n * math.log1p(-share)) / (n * share))


def expressivity(redundancy: float, *, under: float = 0.5, sufficient: float = 0.01) -> Phase:
    """Which phase a network is in by the redundancy of its codes on held-out inputs.

    Args:
        redundancy: from 0 to 1.
        under: above this a network is under-expressive: most inputs share a code.
        sufficient: at most this, it is sufficiently expressive; in between, critically. The paper
            draws its regions by eye, these two numbers are not from it.

    Raises:
        ValueError: redundancy outside [0, 1], or thresholds out of order.

    Examples:
        >>> expressivity(0.9), expressivity(0.1), expressivity(0.0)
        ('under', 'critical', 'sufficient')

    Source: He et al. (2021), arXiv 2101.05490, the activation hash phase chart.
    """
    if not 0 <= redundancy <= 1:
        raise ValueError(f"redundancy must be in [0, 1], but is {redundancy}")
    if not 0 <= sufficient <= under <= 1:
        raise ValueError(
            f"0 <= sufficient <= under <= 1 must hold, but they are {sufficient}, {under}"
        )
    if redundancy > under:
        return "under"
    return "critical" if redundancy > sufficient else "sufficient"


def phase_chart(
    x: Sequence[Any],
    y: Sequence[Any],
    redundancy: Float[np.ndarray, "y x"],
    *,
    under: float = 0.5,
    sufficient: float = 0.01,
) -> go.Figure:
    """The phases over two of model size, training time and number of training inputs.

    Args:
        x: values along the horizontal axis, as many as columns.
        y: values along the vertical axis, as many as rows.
        redundancy: on held-out inputs; NaN leaves a cell empty.
        under: as `expressivity`.
        sufficient: as `expressivity`.

    Returns:
        A plotly figure: a cell a pair, coloured by its phase, with its redundancy written in it. The
        axes have no titles yet.

    Raises:
        ValueError: redundancy of another shape, or as `expressivity`.

    Examples:
        >>> figure = phase_chart([10, 40], [1, 3], np.array([[0.9, 0.1], [0.8, 0.005]]))
        >>> figure.data[0].z.tolist()
        [[0.0, 1.0], [0.0, 2.0]]
    """
    import plotly.graph_objects as go

    if redundancy.shape != (len(y), len(x)):
        raise ValueError(
            f"redundancy must have the shape {(len(y), len(x))}, but has {redundancy.shape}"
        )
    place = {"under": 0.0, "critical": 1.0, "sufficient": 2.0}
    phases = [
        math.nan if math.isnan(r) else place[expressivity(r, under=under, sufficient=sufficient)]
        for r in redundancy.flat
    ]
    text = ["" if math.isnan(r) else f"{r:.2g}" for r in redundancy.flat]
    colors = ("#cf4257", "#a07030", "#14976a")
    cells = go.Heatmap(
        x=[str(value) for value in x],
        y=[str(value) for value in y],
        z=np.reshape(phases, redundancy.shape),
        text=np.reshape(text, redundancy.shape),
        texttemplate="%{text}",
        textfont={"color": "white"},
        hovertemplate="%{x}, %{y}: redundancy %{text}<extra></extra>",
        zmin=-0.5,
        zmax=2.5,
        colorscale=[
            (edge, color)
            for i, color in enumerate(colors)
            for edge in (i / len(colors), (i + 1) / len(colors))
        ],
        colorbar={"tickvals": list(place.values()), "ticktext": list(place), "title": "expressive"},
        xgap=2,
        ygap=2,
    )
    figure = go.Figure(cells)
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure
