"""A configuration from a preset and `key=value` changes, with errors a person can act on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from szilard.lab.experiment import Experiment, ExperimentConfig


class SettingError(ValueError):
    """A preset or a setting that is not one."""


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: near misses, or all there is.

    Examples:
        >>> nearest("quik", ["smoke", "quick"])
        "; did you mean 'quick'?"
    """
    near = get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; there is {', '.join(known)}" if known else ""


def configure(
    experiment: Experiment,
    preset: str,
    assignments: Sequence[str] = (),
    seeds: int | None = None,
) -> ExperimentConfig:
    """The configuration of a preset with changes.

    Args:
        experiment: whose presets and fields count.
        preset: name of the preset to start from.
        assignments: `key=value`; a dot leads into a nested group; values are JSON or bare strings.
        seeds: number of seeds, None for the preset's.

    Raises:
        SettingError: unknown preset or key (the nearest are named), or a value that is not legal.
    """
    presets: Mapping[str, ExperimentConfig] = {str(k): v for k, v in experiment.presets.items()}
    if preset not in presets:
        raise SettingError(f"there is no preset {preset!r}{nearest(preset, list(presets))}")
    changes = dict(_split(assignment) for assignment in assignments)
    if seeds is not None:
        changes["seeds",] = str(seeds)
    values: dict[tuple[str, ...], Any] = {key: _parse(text) for key, text in changes.items()}
    try:
        return _build(experiment.Config, presets[preset], values)
    except ValidationError as error:
        first = error
    # A bare string may look like JSON (a model called "1"): whatever was refused is tried as typed.
    for fault in first.errors():
        for key in changes:
            if tuple(map(str, fault["loc"]))[: len(key)] == key:
                values[key] = changes[key]
    try:
        return _build(experiment.Config, presets[preset], values)
    except ValidationError:
        raise SettingError(_explain(experiment.Config, first)) from None


def difference(base: ExperimentConfig, config: ExperimentConfig) -> dict[str, Any]:
    """The fields of `config` that are not those of `base`, seeds aside."""
    before, after = (c.model_dump(mode="json", exclude={"seeds"}) for c in (base, config))
    return {key: value for key, value in after.items() if before.get(key) != value}


def _split(assignment: str) -> tuple[tuple[str, ...], str]:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise SettingError(f"--set {assignment}: must be key=value")
    return tuple(key.strip().split(".")), text.strip()


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _build(
    model: type[ExperimentConfig], preset: ExperimentConfig, values: Mapping[tuple[str, ...], Any]
) -> ExperimentConfig:
    content = preset.model_dump()
    for key, value in values.items():
        group = content
        for depth, part in enumerate(key[:-1], start=1):
            inner = group.setdefault(part, {})
            if not isinstance(inner, dict):
                name = ".".join(key[:depth])
                raise SettingError(f"--set {'.'.join(key)}: {name} is a value, not a group")
            group = inner
        group[key[-1]] = value
    return model.model_validate(content)


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        owner = _owner(model, path)
        if fault["type"] == "extra_forbidden":
            known = list(owner.model_fields) if owner else []
            lines.append(f"there is no setting {'.'.join(path)!r}{nearest(path[-1], known)}")
            continue
        line = f"{'.'.join(path) or 'settings'}: got {fault['input']!r}; {fault['msg']}"
        field = owner.model_fields.get(path[-1]) if owner and path else None
        if field is not None:
            kind = getattr(field.annotation, "__name__", str(field.annotation))
            kind = kind if "[" not in str(field.annotation) else str(field.annotation)
            line += f" ({path[-1]} is of type {kind.replace('typing.', '')}"
            line += f": {field.description})" if field.description else ")"
        lines.append(line)
    return "\n".join(lines)


def _owner(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The model that the last part of `path` is (or would be) a field of."""
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return None
        model = field.annotation
    return model
