"""What is said of an early exit, beside brute force and beside the pipelined loop."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from families import LAYERS, llama, plain_greedy, plain_logits, random_prompt

import specdec
from drafters import EarlyExitDrafter
from experiments import overlap_mass
from experiments.omega import KAPPAS, Omega, lines
from experiments.outcome_hits import Round, Witness, forecasts, summary
from experiments.overlap_mass import main, overlap
from experiments.replies import Text, replies, states
from specdec.translator import Translator, save_translators
from verifiers import FullVerifier

PROMPTS = [random_prompt(length, seed) for seed, length in enumerate((9, 4, 14))]
COUNT = 10


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def module():
    return llama()


@pytest.fixture(scope="module")
def texts(module) -> list[list[Text]]:
    return list(replies(FullVerifier(module), PROMPTS, COUNT, rows=2))


@pytest.fixture(scope="module")
def exits() -> dict[int, Translator]:
    return {2: Translator({"matrix": noise(32, 32), "bias": noise(32)})}


class TestReplies:
    def test_are_the_target_s_own(self, module, texts: list[list[Text]]) -> None:
        assert [len(some) for some in texts] == [2, 1]
        for prompt, text in zip(PROMPTS, [text for some in texts for text in some], strict=True):
            assert text.prompt == len(prompt)
            assert list(text.tokens) == [*prompt, *plain_greedy(module, prompt, COUNT)]

    def test_states_are_those_whose_law_decided_a_token(self, module, texts: list[list[Text]]) -> None:
        found_TPX = torch.cat([states(FullVerifier(module).model, some, [0, 2]) for some in texts], 1)
        plain = []
        for text in (text for some in texts for text in some):
            with torch.no_grad():
                answer = module(torch.tensor([text.tokens]), use_cache=False, output_hidden_states=True)
            hidden_TSX = torch.stack([answer.hidden_states[layer][0] for layer in (0, 2)])
            plain.append(hidden_TSX[:, text.prompt - 1 : -1])
        torch.testing.assert_close(found_TPX, torch.cat(plain, 1), rtol=1e-4, atol=1e-4)


class TestOmega:
    def test_is_what_brute_force_on_full_logits_gives(
        self, module, texts: list[list[Text]], exits: dict[int, Translator]
    ) -> None:
        curves = overlap(FullVerifier(module).model, texts, [1, 2, 3], exits)
        assert [(curve.layer, curve.trained) for curve in curves] == [
            (1, False),
            (2, False),
            (3, False),
            (2, True),
        ]
        for curve in curves:
            mass, found, places = brute_force(module, texts, curve.layer, exits[2] if curve.trained else None)
            said = curve.as_dict(LAYERS)
            assert said["places"] == places == 3 * COUNT
            assert said["mass"] == pytest.approx(mass, rel=1e-3)
            assert said["argmax_found"] == pytest.approx(found)
            assert said["share_of_depth"] == curve.layer / LAYERS

    def test_raw_and_trained_differ(self, module, texts: list[list[Text]], exits: dict[int, Translator]) -> None:
        raw, trained = overlap(FullVerifier(module).model, texts, [2], exits)
        assert not torch.allclose(raw.mass, trained.mass, rtol=1e-2)


@torch.no_grad()
def brute_force(
    module, texts: list[list[Text]], layer: int, map: Translator | None
) -> tuple[dict[int, float], dict[int, float], int]:
    """Sorted lists of probabilities, one place and one kappa at a time."""
    mass, found, places = dict.fromkeys(KAPPAS, 0.0), dict.fromkeys(KAPPAS, 0.0), 0
    for text in (text for some in texts for text in some):
        final_SV = plain_logits(module, list(text.tokens)).softmax(-1)
        answer = module(torch.tensor([text.tokens]), use_cache=False, output_hidden_states=True)
        state_SX = answer.hidden_states[layer][0]
        exit_SV = module.lm_head(module.model.norm(state_SX if map is None else map(state_SX)))
        for place in range(text.prompt - 1, len(text.tokens) - 1):
            law, places = final_SV[place].tolist(), places + 1
            order = sorted(range(len(law)), key=lambda token: -exit_SV[place, token].item())
            for kappa in KAPPAS:
                mass[kappa] += sum(law[token] for token in order[:kappa])
                found[kappa] += law.index(max(law)) in order[:kappa]
    means = ({kappa: total / places for kappa, total in sums.items()} for sums in (mass, found))
    return *means, places


class TestHits:
    @pytest.mark.parametrize("width", [1, 2])
    def test_are_those_of_the_pipelined_loop(self, module, exits: dict[int, Translator], width: int) -> None:
        """It prepares for what a forecast says, and finds its draft there or not: the same rounds and hits."""
        verifier, drafter = FullVerifier(module), EarlyExitDrafter(3, length=3, width=width)
        arms = forecasts(exits, [2], [4], top=4, weight=0.5)
        witness = Witness(verifier, drafter, arms)
        for prompt in PROMPTS[1:]:
            plain = specdec.generate(witness, drafter, prompt, 24)
            assert plain.row() == plain_greedy(module, prompt, 24)
        assert len(arms) == 5 and len({tuple(one.hits.values()) for one in witness.rounds}) > 2
        for name, forecast in arms.items():
            prepared = outcomes = 0
            for prompt in PROMPTS[1:]:
                trace = specdec.generate(verifier, drafter, prompt, 24, forecast=forecast).trace
                # The first round has no window: what it prepares for is no window's outcome.
                prepared += sum(handover.hit[0] for handover in trace.handovers[1:])
                outcomes += len(trace.handovers) - 1
            assert (sum(one.hits[name] for one in witness.rounds), len(witness.rounds)) == (prepared, outcomes)

    def test_are_counted_by_what_became_of_the_window(self) -> None:
        name = ("drafter", 8)
        rounds = [
            Round(4, 4, {name: True}),
            Round(4, 0, {name: True}),
            Round(4, 0, {name: False}),
            Round(4, 2, {name: False}),
            Round(2, 2, {name: False}),
        ]
        said = summary(rounds)
        assert (said["rounds"], said["rejections"], said["mean_accepted"]) == (5, 3, 1.6)
        assert said["rejections_by_accepted"] == {0: 2, 2: 1}
        assert said["arms"] == [
            {
                "forecast": "drafter",
                "branches": 8,
                "hit": 2 / 5,
                "hit_given_rejection": 1 / 3,
                "hit_by_accepted": {0: 1 / 2, 2: 0.0},
                "coverage_by_position": {0: 1 / 2, 1: None, 2: 0.0, 3: None, 4: 1.0},
            }
        ]
        assert said["outcomes_by_position"] == {0: 2, 1: 0, 2: 2, 3: 0, 4: 1}
        assert summary([])["rounds"] == 0


class TestPositions:
    @pytest.mark.parametrize("width", [1, 2])
    def test_omega_is_of_the_places_that_the_reply_went_through(
        self, module, exits: dict[int, Translator], width: int
    ) -> None:
        """The reply is known, so laws can be had of it anew, place by place and without any window."""
        drafter, prompt = EarlyExitDrafter(3, length=3, width=width), PROMPTS[2]
        witness = Witness(FullVerifier(module), drafter, forecasts(exits, [2], [4], top=4, weight=0.5))
        trace = specdec.generate(witness, drafter, prompt, 24).trace
        tokens = [*prompt, *plain_greedy(module, prompt, 24)]
        assert set(witness.omega) == {"drafter", "exit 2 raw", "exit 2 trained"}
        for source, map in (("exit 2 raw", None), ("exit 2 trained", exits[2])):
            sums, places = by_position(module, tokens, len(prompt), trace.rounds[1:-1], map)
            said = witness.omega[source].as_dict()
            assert said["places"] == places and max(places) == 3
            assert set(said["mass"][0]) == {1, 2, 4}, "an exit that names 4 tokens is asked for more"
            for position, mass in said["mass"].items():
                expected = {kappa: sums[position, kappa] / places[position] for kappa in mass}
                assert mass == pytest.approx(expected, rel=1e-3)

    def test_sums_by_hand(self) -> None:
        omega, law = Omega(), torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.0, 1.0, 0.0, 0.0]])
        omega.add(law, torch.tensor([[1, 0], [0, 1]]))
        omega.add(law[:1], torch.tensor([[2, 3]]))
        assert omega.as_dict() == {
            "places": {0: 2, 1: 1},
            "mass": {0: {1: (0.25 + 0.125) / 2, 2: (0.75 + 0.25) / 2}, 1: {1: 0.0, 2: 1.0}},
        }

    def test_the_text(self) -> None:
        name = ("drafter", 8)
        rounds = [Round(2, 0, {name: True}), Round(2, 0, {name: False}), Round(2, 2, {name: True})]
        omega = {
            "drafter": {"places": {0: 3, 1: 1, 2: 1}, "mass": {0: {8: 0.5, 16: 1.0}, 1: {8: 1.0}, 2: {8: 0.25}}}
        }
        told = lines({"drafter_layer": 3, "length": 2, **summary(rounds), "omega": omega})
        assert [line.split("  ")[0] if index == 0 else line.split() for index, line in enumerate(told)] == [
            "first 3 layers draft 2 tokens, 3 outcomes, by position:",
            ["0", "1", "bonus"],
            ["outcomes", "2", "0", "1"],
            ["Ω_8,", "drafter", "0.50", "1.00", "0.25"],
            ["coverage,", "drafter,", "8", "branches", "0.50", "–", "1.00"],
        ]


@torch.no_grad()
def by_position(module, tokens: list[int], start: int, rounds, map: Translator | None):
    """Sums of mass by position and kappa, and counts of places, over the rounds of a reply."""
    final_SV = plain_logits(module, tokens).softmax(-1)
    answer = module(torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    state_SX = answer.hidden_states[2][0]
    exit_SV = module.lm_head(module.model.norm(state_SX if map is None else map(state_SX)))
    sums, places, last = defaultdict(float), defaultdict(int), start  # prefill has committed one token
    for entry in rounds:
        for position in range(entry.accepted + 1):
            places[position] += 1
            order = exit_SV[last + position].argsort(descending=True).tolist()
            for kappa in KAPPAS:
                sums[position, kappa] += sum(final_SV[last + position, token].item() for token in order[:kappa])
        last += entry.committed
    return sums, dict(sorted(places.items()))


def test_the_command_writes_figures_and_a_picture(
    tiny_model_dir: Path, tmp_path: Path, exits: dict[int, Translator], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, file, out = tmp_path / "prompts.jsonl", tmp_path / "exits.safetensors", tmp_path / "found.json"
    prompts.write_text('{"prompt": "one two three"}\n{"prompt": "the cat sat"}\n')
    save_translators(file, exits, target="tiny")
    line = f"--target {tiny_model_dir} --prompts {prompts} --trained {file} --new-tokens 12 --drafters 2 3"
    line += f" --exits 2 3 --budgets 4 8 --top 4 --dtype float32 --device cpu --out {out}"
    main(line.split())
    found = json.loads(out.read_text())
    assert [(c["layer"], c["trained"]) for c in found["curves"]] == [(1, False), (2, False), (3, False), (2, True)]
    assert set(found["curves"][0]["mass"]) == {str(kappa) for kappa in KAPPAS}
    assert [hits["drafter_layer"] for hits in found["hits"]] == [2, 3] and found["blend_weight"] == 0.6
    arms = {arm["forecast"] for arm in found["hits"][0]["arms"]}
    assert "exit 2 trained + drafter" in arms and "exit 3 raw" in arms and "exit 3 trained" not in arms
    assert set(found["hits"][0]["omega"]) == {"drafter", "exit 2 raw", "exit 2 trained", "exit 3 raw"}
    assert list(found["hits"][0]["outcomes_by_position"]) == ["0", "1", "2", "3", "4"]
    told = capsys.readouterr().out
    assert told.count("bonus") == 2 and "Ω_4, exit 2 trained" in told and "Ω_8, drafter" in told
    assert "coverage, exit 3 raw + drafter, 8 branches" in told
    assert found["exits"]["target"] == "tiny"
    for picture in ("found.png", "found_hits.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("--depths 0", "layer 1 to 3"),
        ("--depths 2 4", "layer 1 to 3"),
        ("--drafters 2 --exits 15", "layer 1 to 3"),
        ("--drafters 5 --exits 2", "exit_layer must be from 1 to 3"),
        ("--drafters 2 --exits 2 --length 0", "length must be at least 1"),
        ("--drafters 2 --exits 2 --budgets 8 0", "branches must be at least 1"),
        ("--drafters 2 --exits 2 --top 100000", "cannot name"),
        ("--drafters 2 --exits 2 --weight 1.5", "weight must be from 0 to 1"),
    ],
)
def test_what_cannot_be_is_said_before_the_replies(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, told: str
) -> None:
    monkeypatch.setattr(overlap_mass, "replies", lambda *_: pytest.fail("it began"))
    line = f"--target {tiny_model_dir} --dtype float32 --device cpu --out {tmp_path / 'found.json'} {wrong}"
    with pytest.raises(ValueError, match=told):
        main(line.split())
