"""A tiny experiment for the tests of the lab: means of coin flips, with knobs that make it fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pydantic import BaseModel, ConfigDict, Field

from szilard.lab.experiment import Claim, ExperimentConfig, Figure, Log, Preset, Row
from szilard.lab.statistics import mean_interval


class Coin(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    bias: float = Field(default=0.7, ge=0, le=1, description="probability of heads")
    label: str = "penny"


class CoinConfig(ExperimentConfig):
    flips: int = Field(default=50, ge=1, description="flips a unit")
    coin: Coin = Coin()
    threshold: float = 0.5
    fail: str = ""
    claims_fail: bool = False
    pause: float = 0.0
    counter: str = ""


class CoinExperiment:
    Config = CoinConfig
    presets: ClassVar[Mapping[Preset, CoinConfig]] = {
        "smoke": CoinConfig(seeds=2, flips=10),
        "quick": CoinConfig(seeds=3),
        "paper": CoinConfig(seeds=10, flips=10_000),
    }

    def arms(self, config: CoinConfig) -> Sequence[str]:
        return ["biased / odd", "fair"]

    def run(self, config: CoinConfig, arm: str, seed: int, log: Log) -> Sequence[Row]:
        if config.counter:
            with open(Path(config.counter), "a") as file:
                file.write(f"{arm},{seed}\n")
        if config.fail == arm and seed == 1:
            raise RuntimeError("the coin rolled away")
        if config.fail == "die" and arm == "fair" and seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(config.pause)
        rng = np.random.default_rng(seed)
        bias = config.coin.bias if arm != "fair" else 0.5
        flips = rng.random(config.flips) < bias
        log(0.5, "flipping")
        rows: list[Row] = [{"metric": "heads", "value": float(flips.mean())}]
        rows += [
            {"metric": "running", "value": float(flips[: i + 1].mean()), "step": i}
            for i in range(config.flips)
        ]
        log(1.0, "done")
        return rows

    def claims(self, config: CoinConfig, table: pd.DataFrame) -> Sequence[Claim]:
        if config.claims_fail:
            raise KeyError("no such column")
        heads = table[(table.metric == "heads") & (table.arm == "biased / odd")]
        return [
            Claim.judge(
                "A biased coin shows more heads than the threshold.",
                paper="0.7",
                measured=mean_interval(heads.value, groups=heads.seed),
                quantity="share of heads",
                above=config.threshold,
            ),
            Claim.not_measurable(
                "It does so for ever.", paper="-", quantity="heads", note="needs infinity"
            ),
        ]

    def figures(self, config: CoinConfig, table: pd.DataFrame) -> Sequence[Figure]:
        running = table[(table.metric == "running") & (table.seed == 0)]
        plot = go.Figure()
        for arm, rows in running.groupby("arm"):
            plot.add_scatter(x=rows.step, y=rows.value, name=str(arm))
        plot.update_layout(xaxis_title="flips", yaxis_title="share of heads")
        return [Figure("Running share of heads", "It settles at the bias.", plot)]


experiment = CoinExperiment()
