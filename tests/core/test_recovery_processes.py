"""Several processes train one network to the weights that one process gives, and the loss of one is a loss of the run."""

import copy
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch

from core.checkpoint import Checkpoint
from core.plain_graph import PlainNetwork
from core.recovery import RecoveryConfig, load_dataset, recover
from core.recovery.processes import ProcessLost
from core.recovery.team import ALONE, SyncedBatchNorm, Team
from tests.core.recovery_cases import pruned_and_kept, pruned_network, save_digits, trained_network


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(save_digits(tmp_path_factory.mktemp("digits")))


# A batch that two cannot share evenly, and draws that belong to the whole batch.
OPTIONS = {"batch_size": 63, "mixup": 0.4, "cutout": 0.3, "gradient_clip": 1.0, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def alone(dataset):
    found = run(dataset)
    assert found.details["training"]["processes"] == 1
    return found


def run(dataset, checkpoint=None, **config):
    return recover(
        pruned_network(),
        trained_network(),
        dataset,
        RecoveryConfig(**{"epochs": 1, "threads": 1, "precision": "float32", **OPTIONS, **config}),
        kept=pruned_and_kept()[1],
        seed=3,
        checkpoint=checkpoint,
    )


def distance(one, other):
    """Largest difference of any tensor, relative to its own size."""
    pairs = [(tensor.double(), other.tensors[name].double()) for name, tensor in one.tensors.items()]
    return max(float((first - second).norm() / first.norm().clamp_min(1e-9)) for first, second in pairs)


def test_a_network_goes_to_another_process_and_is_the_same_there():
    network = trained_network()
    there = pickle.loads(pickle.dumps(PlainNetwork.of(network))).network()
    inputs = network.random_inputs(3, 0)
    assert torch.equal(network.run(*inputs)[0], there.run(*inputs)[0])
    assert [node.meta for node in there.graph.nodes if node.op != "output"] == [
        {name: node.meta[name] for name in ("value", "path") if name in node.meta}
        for node in network.graph.nodes
        if node.op != "output"
    ]


@pytest.mark.parametrize("affine", [True, False])
def test_the_batch_norm_of_a_team_of_one_is_torchs_own(affine):
    torch.manual_seed(0)
    plain = torch.nn.BatchNorm2d(5, affine=affine)
    if affine:
        torch.nn.init.normal_(plain.weight)
        torch.nn.init.normal_(plain.bias)
    own = SyncedBatchNorm(copy.deepcopy(plain), ALONE)
    first = torch.randn(4, 5, 3, 3, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    slope = torch.randn(4, 5, 3, 3)
    one, other = plain(first), own(second)
    one.backward(slope)
    other.backward(slope)
    assert torch.allclose(one, other, atol=1e-5) and torch.allclose(first.grad, second.grad, atol=1e-5)
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(tensor.float(), own.state_dict()[name].float(), atol=1e-6), name
    if affine:
        assert torch.allclose(plain.weight.grad, own.weight.grad, atol=1e-5)
    plain.eval()
    own.eval()
    assert torch.allclose(plain(first), own(second), atol=1e-5)


def test_two_processes_come_to_the_weights_of_one(dataset, alone):
    together = run(dataset, processes=2)
    training = together.details["training"]
    assert (training["processes"], training["notes"]) == (2, [])
    start = pruned_network()
    assert distance(alone.network, together.network) < 1e-3 < 1e-2 < distance(start, alone.network)
    records = [found.details["training"]["epoch_records"][0] for found in (alone, together)]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-3)
    assert records[0]["train_accuracy"] == pytest.approx(records[1]["train_accuracy"], abs=0.01)


def test_each_process_draws_for_itself_with_any_seed_of_a_request():
    draws = []
    for seed, step, rank in [(2**63 - 1, 7, 0), (2**63 - 1, 7, 1), (2**63 - 1, 8, 0), (0, 7, 0)]:
        Team(rank, 2, seed, None).begin_step(step)
        draws.append(float(torch.rand(())))
    assert len(set(draws)) == len(draws)


def test_the_loss_of_a_process_is_a_loss_of_the_run_which_goes_on_from_its_checkpoint(dataset, alone, tmp_path):
    class Killing(Checkpoint):
        due = True

        def save(self, step, state):
            super().save(step, state)
            if state.values["step"] == 7:
                (other,) = children()
                os.kill(other, signal.SIGKILL)

    with pytest.raises(ProcessLost) as lost:
        run(dataset, Killing(tmp_path / "state", "request"), processes=2)
    assert lost.value.signal_number == signal.SIGKILL
    told = []
    checkpoint = Checkpoint(tmp_path / "state", "request", resumed=lambda *about: told.append(about))
    assert distance(alone.network, run(dataset, checkpoint, processes=2).network) < 1e-3
    (about,) = told
    assert about[0] == "recover/training" and about[1] >= 7


def test_where_processes_cannot_meet_one_trains_and_says_so(dataset, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    training = run(dataset, processes=2, epochs=1, batch_size=512).details["training"]
    assert training["processes"] == 1 and training["epoch_records"]
    assert "One process instead of 2" in training["notes"][0] and "nowhere0" in training["notes"][0]


def children() -> list[int]:
    """Processes that this one has started for a training."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            ours = b"recovery import processes" in (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if ours and parent == os.getpid():
            found.append(int(entry.name))
    return found
