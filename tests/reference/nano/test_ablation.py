"""The ablation: what each arm is shown, that stopping changes nothing, and its statistic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from reference.families.editverse import CONFIGS
from reference.nano import ablation
from reference.nano.ablation_statistics import (
    T_975,
    Outcome,
    compare_arms,
    format_verdict,
    is_taught,
    sign_test,
)
from reference.nano.batching import Packed, pack
from reference.nano.dataset import CachedSample
from reference.nano.facts import NAMES
from reference.nano.tasks import draw_sample
from reference.nano.world import Canvas

BUDGET = ablation.Budget(clips=24, images=40, distinct_clips=5, distinct_images=7, seeds=(0,))
SMALL = replace(CONFIGS["nano"], width=32, num_blocks=1, num_heads=1, head_dim=64, mlp_width=32)


def packed(rng: np.random.Generator, words: int, frames: int) -> Packed:
    def clip() -> torch.Tensor:
        return torch.tensor(rng.standard_normal((frames, 2, 2, SMALL.patch_dim)), dtype=torch.float16)

    ids = [int(i) for i in rng.integers(3, 600, words)]
    facts = {"target": torch.rand(frames, 2, 2, len(NAMES)).half()}
    return pack(CachedSample("t", [ids, "video1", [1]], {"video1": clip()}, clip(), "video1", facts))


@pytest.fixture
def samples() -> dict[str, list[Packed]]:
    rng = np.random.default_rng(0)
    return {
        "clips": [packed(rng, 3 + index, 3) for index in range(5)],
        "images": [packed(rng, 3 + index, 1) for index in range(7)],
    }


def lengths(samples: dict[str, list[Packed]]) -> dict[str, list[int]]:
    return {kind: [p.length for p in own] for kind, own in samples.items()}


def plans(samples: dict[str, list[Packed]], seed: int = 0) -> dict[str, list[ablation.Step]]:
    return {arm: ablation.plan_steps(arm, seed, BUDGET, lengths(samples)) for arm in ablation.ARMS}


def test_the_arms_share_their_clips(samples: dict[str, list[Packed]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablation, "TOKENS", 100)
    found = plans(samples)
    clips = [members for _, members in found["A"]]
    assert len(clips) > 3
    assert sum(map(len, clips)) == BUDGET.clips
    assert all(kind == "clips" for kind, _ in found["A"] + found["C"])
    assert [members for kind, members in found["B"] if kind == "clips"] == clips
    assert [members for _, members in found["C"]][: len(clips)] == clips
    assert sum(len(members) for kind, members in found["B"] if kind == "images") == BUDGET.images
    # The images do not all stand behind the clips.
    assert [kind for kind, _ in found["B"]] != sorted(kind for kind, _ in found["B"])
    assert plans(samples) == found
    assert plans(samples, seed=1)["A"] != found["A"]


def test_equal_compute_is_equal_to_a_step(samples: dict[str, list[Packed]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablation, "TOKENS", 100)
    of = lengths(samples)
    tokens = {
        arm: sum(of[kind][index] for kind, members in steps for index in members)
        for arm, steps in plans(samples).items()
    }
    assert tokens["A"] < tokens["B"] <= tokens["C"] < tokens["B"] + 100


def test_steps_hold_no_more_than_their_tokens():
    rng = np.random.default_rng(0)
    of = [int(n) for n in rng.integers(20, 120, 50)]
    steps = ablation.fill_steps(np.random.default_rng(1), of, 1000, 400)
    assert sum(map(len, steps)) == 1000
    assert max(len(step) * max(of[i] for i in step) for step in steps) <= 400


def test_no_clip_holds_an_edit_that_is_left_out():
    rng = np.random.default_rng(3)
    drawn = [ablation.draw_clip(rng) for _ in range(30)]
    assert {one.task for one in drawn} <= set(ablation.SEEN)
    assert not any(ablation.holds_left_out(one) for one in drawn)
    assert all(len(one.target) > 1 for one in drawn)
    assert all(len(ablation.draw_image(rng).target) == 1 for _ in range(5))


def test_parts_of_other_tasks_that_are_left_out_are_found():
    """By the words of the instruction, which `holds_left_out` does not read."""
    rng = np.random.default_rng(5)
    words = ("remove", "delete", "erase", "take away", "color of", "paint", "recolor")
    styles = ("grayscale", "black and white", "invert", "negative", "sepia", "pixel", "night")
    said = {True: 0, False: 0}
    for _ in range(40):
        one = draw_sample(rng, "combined", Canvas(5, 48, 80))
        prompt = one.prompt.lower()
        if any(word in prompt for word in (*words, *styles)):
            assert ablation.holds_left_out(one), one.prompt
        said[ablation.holds_left_out(one)] += 1
    assert min(said.values()) > 1


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, samples: dict[str, list[Packed]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ablation, "TOKENS", 200)
    ends = []
    monkeypatch.setattr(
        ablation,
        "measure",
        lambda model, folder: ends.append([p.detach().clone() for p in model.parameters()]) or {},
    )

    def train(name: str, stop_after: int | None) -> bool:
        return ablation.train_arm(
            tmp_path, tmp_path / name, "B", 0, BUDGET, samples, config=SMALL, stop_after=stop_after
        )

    assert train("whole", None)
    assert not train("parts", 2)
    assert (tmp_path / "parts" / "state.pt").exists()
    assert not train("parts", 1)
    assert train("parts", None)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    told = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts")]
    assert {**told[0], "core_hours": 0} == {**told[1], "core_hours": 0}
    assert not (tmp_path / "parts" / "state.pt").exists()


def test_workers_share_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    budget = replace(BUDGET, seeds=(3, 4, 5))
    trained: list[tuple[int, str]] = []
    monkeypatch.setattr(ablation, "read_packed", lambda *_: [])
    monkeypatch.setattr(ablation, "config_for", lambda _: SMALL)
    monkeypatch.setattr(
        ablation, "train_arm", lambda folder, run, arm, seed, *_, config: trained.append((seed, arm))
    )
    done = tmp_path / "study" / "seed-4-B"
    done.mkdir(parents=True)
    (done / "result.json").write_text("{}")
    for rank in range(2):
        ablation.run_study(rank, 2, tmp_path, tmp_path / "study", budget)
    assert sorted(trained) == sorted(
        (seed, arm) for seed in (3, 4, 5) for arm in "ABC" if (seed, arm) != (4, "B")
    )


def outcomes(arm: str, values: list[float], measure: str = "lift, error_left") -> list[Outcome]:
    return [Outcome(seed, arm, measure, value) for seed, value in enumerate(values)]


def test_the_interval_and_the_sign_test_are_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.4, 0.05, 6), rng.normal(0.5, 0.05, 6)
    found = compare_arms(
        [*outcomes("B", list(first)), *outcomes("A", list(second))], "lift, error_left", ("B", "A")
    )
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.mean - found.half_width == pytest.approx(expected.low, rel=1e-3)
    assert found.mean + found.half_width == pytest.approx(expected.high, rel=1e-3)
    for degrees, point in T_975.items():
        assert point == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)
    for above, below in ((6, 0), (5, 1), (3, 3), (0, 5), (1, 8)):
        expected_p = stats.binomtest(above, above + below).pvalue
        assert sign_test([1.0] * above + [-1.0] * below + [0.0]) == pytest.approx(expected_p)


def test_the_claim_needs_both_comparisons():
    a, b = [0.50, 0.52, 0.51], [0.40, 0.41, 0.405]
    worse, level = [0.48, 0.49, 0.485], [0.40, 0.42, 0.40]
    told = [*outcomes("A", a), *outcomes("B", b)]
    assert is_taught([*told, *outcomes("C", worse)], "lift")
    assert not is_taught([*told, *outcomes("C", level)], "lift")
    text = format_verdict([*told, *outcomes("C", level)])
    assert "lift: the claim is not shown" in text
    assert "transfer: not every arm has a run yet" in text


def test_seeds_are_paired_or_left_out():
    found = compare_arms([*outcomes("B", [1.0, 2.0]), *outcomes("A", [0.5])], "lift, error_left", ("B", "A"))
    assert (found.seeds, found.mean, found.half_width) == (1, 0.5, float("inf"))
    with pytest.raises(ValueError, match="0 seeds have both B and C"):
        compare_arms(outcomes("B", [1.0]), "lift, error_left", ("B", "C"))
