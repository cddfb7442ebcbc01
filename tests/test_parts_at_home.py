"""Parts of the net at home: by hand and in FLARE, each held against code of this file's own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dl.norm_net import NormNet
from dl.train import Net
from faults.faulty_parts_learner import FaultyPartsLearner
from fl.by_hand import federated_averaging, score
from fl.model_learner import CIFAR10ModelLearner
from fl.parts_at_home import PartsAtHomeLearner
from fl.parts_by_hand import Parts, compare_ways, federate_parts, run_way, score_parts, welcome
from tutorial_utils.data import Dataset, prepare, subset
from tutorial_utils.drive import test_drive
from tutorial_utils.errors import SimulationError
from tutorial_utils.job import LearnerJob, build_job
from tutorial_utils.keep import SiteState
from tutorial_utils.learner import to_numpy
from tutorial_utils.partition import split_dataset
from tutorial_utils.results import Run, sha256
from tutorial_utils.simulate import simulate

HOW = {"batch_size": 8, "epochs": 1, "lr": 0.01, "momentum": 0.9}
ROUNDS, SEED = 3, 4
WAYS = {
    "FedAvg": (Net, []),
    "FedPer": (Net, ["fc3.*"]),
    "alone": (Net, ["*"]),
    "FedAvg with BatchNorm": (NormNet, []),
    "FedBN": (NormNet, ["norm*"]),
}
every_way = pytest.mark.parametrize(("kind", "keep_local"), WAYS.values(), ids=WAYS)
with_parts = pytest.mark.parametrize("way", ["FedPer", "FedBN"])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """So few digits that a training takes a blink."""
    return subset(prepare("digits", root=tmp_path_factory.mktemp("few")), 120)


@pytest.fixture(scope="module")
def pair(few: Dataset) -> list[Path]:
    return split_dataset(few.folder, 2, alpha=0.5)


# --- the same once more, with nothing of the project but the nets ---


@dataclass
class Plain:
    """The server's weights and each site's whole model, as tensors."""

    server: dict[str, Tensor]
    sites: dict[str, dict[str, Tensor]]


def arrays(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    with np.load(folder / f"{split}.npz") as file:
        return torch.tensor(file["images"]).float() / 255 * 2 - 1, torch.tensor(file["labels"])


def descend(net: nn.Module, folder: Path, seed: int, most: int | None = None) -> int:
    """One epoch (or `most` steps, in as many epochs as they take) of heavy-ball descent, written out."""
    images, labels = arrays(folder, "train")
    order = DataLoader(
        range(len(labels)), HOW["batch_size"], shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    speeds = [torch.zeros_like(weight) for weight in net.parameters()]
    steps = 0
    net.train()
    while most is None or steps < most:
        for batch in order:
            if steps == most:
                return steps
            net.zero_grad()
            nn.functional.nll_loss(torch.log_softmax(net(images[batch]), 1), labels[batch]).backward()
            with torch.no_grad():
                for weight, speed in zip(net.parameters(), speeds, strict=True):
                    speed.mul_(HOW["momentum"]).add_(weight.grad)
                    weight.sub_(HOW["lr"] * speed)
            steps += 1
        if most is None:
            break
    return steps


def plain_rounds(
    kind: type[Net], present: Sequence[Sequence[Path]], keep: Sequence[str], after: Sequence[str] = (), last: int = 0
) -> Plain:
    """A round for each list of folders that take part; in the `last` rounds what stays is `after`."""
    net = kind(SEED)
    server = {name: value.clone() for name, value in net.state_dict().items()}
    at_home: dict[str, dict[str, Tensor]] = {folder.name: {} for folder in present[0]}
    for number, folders in enumerate(present):
        patterns = after if number >= len(present) - last else keep
        sent, steps = [], []
        for folder in folders:
            net.load_state_dict({**server, **at_home[folder.name]})
            seed = zlib.crc32(f"{SEED}/{folder.name}/{number}".encode()) if number else SEED
            steps.append(descend(net, folder, seed))
            now = {name: value.clone() for name, value in net.state_dict().items()}
            stays = {name for name in now if any(fnmatch(name, pattern) for pattern in patterns)}
            at_home[folder.name] = {name: now[name] for name in stays}
            sent.append({name: now[name] for name in now if name not in stays})
        for name in sent[0]:
            mean = sum(n * one[name].double() for n, one in zip(steps, sent, strict=True)) / sum(steps)
            whole = not server[name].is_floating_point()
            server[name] = (mean.round() if whole else mean).to(server[name].dtype)
    return Plain(server, {site: {**server, **own} for site, own in at_home.items()})


def plain_right(kind: type[Net], state: dict[str, Tensor], folder: Path, split: str = "test") -> int:
    net = kind()
    net.load_state_dict(state)
    net.eval()
    images, labels = arrays(folder, split)
    with torch.no_grad():
        return int((net(images).argmax(1) == labels).sum())


def assert_near(made: dict, wanted: dict) -> None:
    assert made.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(np.asarray(made[name]), value.numpy(), rtol=0, atol=1e-6, err_msg=name)


# --- by hand ---


@every_way
def test_by_hand_it_is_what_the_papers_say(kind: type[Net], keep_local: list[str], pair: list[Path]) -> None:
    made = federate_parts(kind(SEED), pair[::-1], range(ROUNDS), keep_local, seed=SEED, **HOW)
    wanted = plain_rounds(kind, [pair] * ROUNDS, keep_local)
    assert_near(made.shared, wanted.server)
    for site, state in wanted.sites.items():
        assert_near(made.at(site), state)
    first = kind(SEED).state_dict()
    moved = {name for name in first if not np.array_equal(made.shared[name], first[name])}
    shared = {name for name in first if not any(fnmatch(name, pattern) for pattern in keep_local)}
    has_norm = any(isinstance(part, nn.BatchNorm2d) for part in kind(SEED).modules())
    still = {"conv1.bias", "conv2.bias"} if has_norm else set()  # before a BatchNorm a gradient is rounding, or nothing
    assert shared - still <= moved <= shared
    if keep_local:
        one, other = (made.own[folder.name] for folder in pair)
        assert any(not np.array_equal(one[name], other[name]) for name in one), "each site has its own"


def test_federated_and_then_alone_by_hand(pair: list[Path]) -> None:
    begun = federate_parts(Net(SEED), pair, range(2), [], seed=SEED, **HOW)
    made = federate_parts(Net(SEED), pair, range(2, ROUNDS), ["*"], seed=SEED, start=begun, **HOW)
    wanted = plain_rounds(Net, [pair] * ROUNDS, [], after=["*"], last=1)
    assert_near(made.shared, wanted.server)
    for site, state in wanted.sites.items():
        assert_near(made.at(site), state)


def test_nothing_at_home_is_federated_averaging_to_the_bit(pair: list[Path]) -> None:
    made = federate_parts(Net(SEED), pair, range(ROUNDS), [], seed=SEED, **HOW)
    assert sha256(made.shared) == sha256(federated_averaging(pair, ROUNDS, seed=SEED, **HOW))
    assert all(sha256(made.at(folder.name)) == sha256(made.shared) for folder in pair)


def test_a_federation_that_goes_on_is_one_that_was_not_interrupted(pair: list[Path]) -> None:
    whole = federate_parts(Net(SEED), pair, range(ROUNDS), ["fc3.*"], seed=SEED, **HOW)
    begun = federate_parts(Net(SEED), pair, range(1), ["fc3.*"], seed=SEED, **HOW)
    before = sha256(begun.at("site-1"))
    made = federate_parts(Net(7), pair, range(1, ROUNDS), ["fc3.*"], seed=SEED, start=begun, **HOW)
    assert all(sha256(made.at(folder.name)) == sha256(whole.at(folder.name)) for folder in pair)
    assert sha256(begun.at("site-1")) == before, "it leaves what it began with as it was"


def test_every_model_meets_every_site_and_validation_stays_at_home(pair: list[Path]) -> None:
    wanted = plain_rounds(Net, [pair] * 2, ["fc3.*"])
    parts = Parts(
        {name: value.numpy() for name, value in wanted.server.items()},
        {site: {name: state[name].numpy() for name in state} for site, state in wanted.sites.items()},
    )
    rows = score_parts(Net(), parts, pair)
    found = {(row["model"], row["site"], row["split"]): (row["right"], row["images"]) for row in rows}
    assert len(found) == len(rows) == 2 * 2 + 2
    for (model, data, split), (right, images) in found.items():
        folder = next(folder for folder in pair if folder.name == data)
        assert right == plain_right(Net, wanted.sites[model], folder, split), (model, data, split)
        assert images == len(arrays(folder, split)[1])
        assert split == "test" or model == data
    assert {row["sha256"] for row in rows} == {sha256(state) for state in wanted.sites.values()}


@pytest.mark.parametrize("keep_local", [[], ["fc3.*"]])
def test_what_is_tuned_makes_as_many_steps_as_what_is_federated(keep_local: list[str], pair: list[Path]) -> None:
    made = run_way(Net, pair, ROUNDS, keep_local, seed=SEED, tuned=1, **HOW)
    ends = [plain_rounds(Net, [pair] * ROUNDS, keep_local, after=after, last=1) for after in (keep_local, ["*"])]
    for rows, end in zip(made, ends, strict=True):
        for row in rows:
            folder = next(folder for folder in pair if folder.name == row["site"])
            assert row["right"] == plain_right(Net, end.sites[row["model"]], folder, row["split"]), row
    assert made[:1] == run_way(Net, pair, ROUNDS, keep_local, seed=SEED, **HOW)


@pytest.mark.slow
def test_a_comparison_has_every_way_with_each_split_and_seed(pair: list[Path]) -> None:
    rows = compare_ways({"one": pair, "other": pair}, (0, SEED), 2, tuned=1, processes=1, **HOW)
    plain, norm = ({"FedAvg", "tuned", "alone", added} for added in ("FedPer", "FedBN"))
    wanted = {("plain", way) for way in plain} | {("BatchNorm", way) for way in norm}
    kinds = {(row["alpha"], row["seed"], row["net"], row["way"]) for row in rows}
    assert kinds == {(split, seed, *kind) for split in ("one", "other") for seed in (0, SEED) for kind in wanted}
    assert len(rows) == len(kinds) * (2 * 2 + 2)
    ends = {
        ("plain", "FedPer"): plain_rounds(Net, [pair] * 2, ["fc3.*"]),
        ("plain", "tuned"): plain_rounds(Net, [pair] * 2, [], after=["*"], last=1),
        ("BatchNorm", "FedBN"): plain_rounds(NormNet, [pair] * 2, ["norm*"]),
        ("BatchNorm", "alone"): plain_rounds(NormNet, [pair] * 2, ["*"]),
    }
    for row in rows:
        if row["seed"] == SEED and (end := ends.get((row["net"], row["way"]))):
            kind = Net if row["net"] == "plain" else NormNet
            folder = next(folder for folder in pair if folder.name == row["site"])
            assert row["right"] == plain_right(kind, end.sites[row["model"]], folder, row["split"]), row


@pytest.mark.parametrize("way", ["FedAvg", "FedPer", "FedBN"])
def test_a_newcomer_is_looked_at_after_so_many_of_its_own_steps(way: str, pair: list[Path]) -> None:
    (kind, keep_local), (old, new) = WAYS[way], pair
    epoch = -(-len(arrays(new, "train")[1]) // HOW["batch_size"])
    looks = [0, 2, epoch + 1]
    rows = welcome(kind, [old], new, 2, keep_local, looks, seed=SEED, **HOW)
    assert [row["steps"] for row in rows] == looks
    given = plain_rounds(kind, [[old]] * 2, keep_local).server
    for row in rows:
        net = kind()
        net.load_state_dict(given)
        descend(net, new, zlib.crc32(f"{SEED}/{new.name}/2".encode()), most=row["steps"])
        assert row["right"] == plain_right(kind, net.state_dict(), new), row
        assert row["images"] == len(arrays(new, "test")[1])


def test_the_net_with_batchnorm_begins_as_the_other() -> None:
    net, norm = Net(3), NormNet(3)
    added = norm.state_dict().keys() - net.state_dict().keys()
    assert added and all(name.startswith("norm") for name in added)
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in net.state_dict().items())
    images = torch.rand(6, 3, 32, 32)
    norm.eval()
    torch.testing.assert_close(norm(images), net(images), rtol=1e-4, atol=1e-5)
    norm.train()
    one = norm(images[:1])
    assert one.shape == (1, 10) and torch.isfinite(one).all(), "a last batch of one image can be trained on"
    assert not torch.allclose(norm(images), net(images), atol=1e-3)


# --- the learner ---


def make_learner(way: str, folder: Path, **more: object) -> PartsAtHomeLearner:
    kind, keep_local = WAYS[way]
    return PartsAtHomeLearner(str(folder), keep_local, norm=kind is NormNet, seed=SEED, **HOW, **more)


def make_job(way: str, pair: list[Path], rounds: int = ROUNDS) -> LearnerJob:
    name = way.lower().replace(" ", "-")
    return build_job(make_learner(way, pair[0].parent), WAYS[way][0](SEED), rounds=rounds, name=name)


def test_the_learner_that_keeps_nothing_is_the_example_s_to_the_bit(pair: list[Path]) -> None:
    made = test_drive(make_learner("FedAvg", pair[0].parent), Net(SEED), rounds=2)
    wanted = test_drive(CIFAR10ModelLearner(str(pair[0].parent), seed=SEED, **HOW), Net(SEED), rounds=2)
    assert sha256(made.params) == sha256(wanted.params)
    assert made.received == wanted.received and made.test == wanted.test


@pytest.mark.parametrize("way", list(WAYS)[:2] + list(WAYS)[3:])
def test_one_site_s_learner_is_the_script_whatever_it_keeps(way: str, pair: list[Path]) -> None:
    kind, keep_local = WAYS[way]
    learner = make_learner(way, pair[0].parent)
    drive = test_drive(learner, kind(SEED), rounds=2)
    wanted = plain_rounds(kind, [pair[:1]] * 2, keep_local)
    assert_near(drive.params, wanted.server)
    right = plain_right(kind, wanted.sites["site-1"], pair[0])
    assert drive.test["accuracy"] == pytest.approx(right / len(arrays(pair[0], "test")[1]))
    assert learner.keep_local == tuple(keep_local)


def kept_at(run: Run, site: str) -> dict[str, Tensor]:
    found = SiteState(run.site_folder(site) / f"app_{site}").load(before=None)
    return found["local"] if found else {}


def bits_of(run: Run) -> list[str]:
    return [run.sha256, *(sha256(kept_at(run, site)) for site in run.sites)]


@pytest.mark.slow
@pytest.mark.parametrize("way", list(WAYS)[:2] + list(WAYS)[3:])
def test_in_flare_it_is_the_same_as_by_hand(way: str, pair: list[Path], runs: Path) -> None:
    kind, keep_local = WAYS[way]
    run = simulate(make_job(way, pair), runs=runs, progress=False)
    wanted = plain_rounds(kind, [pair] * ROUNDS, keep_local)
    assert_near(run.global_model, wanted.server)
    by_hand = federate_parts(kind(SEED), pair, range(ROUNDS), keep_local, seed=SEED, **HOW)
    assert bits_of(run) == [sha256(by_hand.shared), *(sha256(by_hand.own[site]) for site in run.sites)]
    for folder in pair:
        own = {name: value for name, value in wanted.sites[folder.name].items() if name in kept_at(run, folder.name)}
        assert_near(kept_at(run, folder.name), own)
        right = plain_right(kind, wanted.sites[folder.name], folder)
        tested = len(arrays(folder, "test")[1])
        assert run.cross_site.loc[folder.name, "global"] == pytest.approx(right / tested), "with what stayed there"


@pytest.mark.slow
def test_in_flare_keeping_nothing_is_federated_averaging_to_the_bit(pair: list[Path], runs: Path) -> None:
    plain = build_job(CIFAR10ModelLearner(str(pair[0].parent), seed=SEED, **HOW), Net(SEED), rounds=2, name="plain")
    made, wanted = (simulate(job, runs=runs, progress=False) for job in (make_job("FedAvg", pair, 2), plain))
    assert made.sha256 == wanted.sha256 == sha256(federated_averaging(pair, 2, seed=SEED, **HOW))
    assert made.rounds.equals(wanted.rounds) and made.cross_site.equals(wanted.cross_site)
    assert score(made.global_model, pair) == score(wanted.global_model, pair)


@pytest.mark.slow
def test_what_the_server_need_not_send_can_be_left_out(pair: list[Path], runs: Path) -> None:
    """FLARE's own filter takes the values out that no site uses: the same bits, fewer bytes."""
    kind, keep_local = WAYS["FedPer"]
    unused = [name for name in kind().state_dict() if fnmatch(name, keep_local[0])]
    job = build_job(
        make_learner("FedPer", pair[0].parent),
        kind(SEED),
        rounds=2,
        name="one-way",
        server_filters=[ExcludeVars(unused)],
    )
    made, wanted = (simulate(one, runs=runs, progress=False) for one in (job, make_job("FedPer", pair, 2)))
    assert bits_of(made) == bits_of(wanted)
    assert made.cross_site.equals(wanted.cross_site)
    saved = 2 * len(pair) * sum(kind().state_dict()[name].nbytes for name in unused)
    assert wanted.bytes - made.bytes >= saved


def faulty_job(way: str, pair: list[Path], at_round: int) -> LearnerJob:
    kind, keep_local = WAYS[way]
    learner = FaultyPartsLearner(
        str(pair[0].parent), keep_local, kind is NormNet, fault="die", at_round=at_round, seed=SEED, **HOW
    )
    return build_job(learner, kind(SEED), rounds=ROUNDS, name="faulty")


@pytest.mark.slow
@with_parts
def test_a_run_that_was_cut_goes_on_with_the_parts_at_home(way: str, pair: list[Path], runs: Path) -> None:
    whole = simulate(make_job(way, pair), runs=runs, progress=False)
    with pytest.raises(SimulationError) as caught:
        simulate(faulty_job(way, pair, at_round=2), runs=runs, progress=False)
    assert caught.value.run.rounds_kept == 2
    again = simulate(make_job(way, pair), runs=runs, progress=False, resume_from=caught.value)
    assert bits_of(again) == bits_of(whole)
    assert again.cross_site.equals(whole.cross_site) and again.rounds.equals(whole.rounds)


@pytest.mark.slow
@with_parts
def test_where_a_site_is_lost_the_others_keep_their_parts(way: str, pair: list[Path], runs: Path) -> None:
    kind, keep_local = WAYS[way]
    run = simulate(faulty_job(way, pair, at_round=1), runs=runs, progress=False, min_sites=1)
    assert run.missing == {1: ("site-2",), 2: ("site-2",)}
    wanted = plain_rounds(kind, [pair, pair[:1], pair[:1]], keep_local)
    assert_near(run.global_model, wanted.server)
    for folder in pair:
        here = kept_at(run, folder.name)
        assert_near(here, {name: value for name, value in wanted.sites[folder.name].items() if name in here})
        assert here, "what the lost one kept lies where it was"
    right, tested = plain_right(kind, wanted.sites["site-1"], pair[0]), len(arrays(pair[0], "test")[1])
    assert run.cross_site.loc["site-1", "global"] == pytest.approx(right / tested)


def test_what_stays_is_no_part_of_what_a_site_sends(pair: list[Path]) -> None:
    learner = make_learner("FedPer", pair[0].parent)
    drive = test_drive(learner, Net(SEED))
    assert set(drive.best.params) == set(to_numpy(Net().state_dict())) - {"fc3.weight", "fc3.bias"}
    assert np.array_equal(drive.params["fc3.bias"], Net(SEED).state_dict()["fc3.bias"])
