"""Fine-tuning regains accuracy, repeats exactly, never returns something worse, and never looks at the test split."""

import itertools

import pytest
import torch
from torch import nn

from core.analysis import profile
from core.checkpoint import Checkpoint
from core.network import Network
from core.progress import silent
from core.recovery import RecoveryConfig, accuracy, load_dataset, recover
from core.recovery import schedule as schedules
from core.recovery.augmentation import Augmentation, choose_augmentation
from core.recovery.judges import AccuracyJudge
from core.recovery.objective import Targets, labelled_loss
from core.recovery.optimizers import parameter_groups
from core.recovery.schedule import Schedule, plan_schedule
from core.recovery.steps import Steps
from core.recovery.training_attempts import NEAR_FACTOR, NEAR_LOSS, RETRY_FACTOR, train
from tests.core.recovery_cases import (
    digits,
    pruned_and_kept,
    pruned_network,
    save_digits,
    trained_network,
)

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path):
    return load_dataset(save_digits(tmp_path))


def run(dataset, seed=0, progress=lambda event: None, **config):
    return recover(
        pruned_network(),
        trained_network(),
        dataset,
        RecoveryConfig(**config),
        kept=pruned_and_kept()[1],
        seed=seed,
        device="cpu",
        progress=progress,
    )


class TestFineTuning:
    def test_accuracy_comes_back_and_the_report_says_what_was_measured(self, dataset):
        events = []
        recovered = run(dataset, epochs=8, progress=events.append)
        details = recovered.details
        original, before, after = (
            accuracy(n, dataset.test, dataset) for n in (trained_network(), pruned_network(), recovered.network)
        )
        assert after > 0.93 and after > before + 0.2
        assert (recovered.accuracy_original, recovered.accuracy_after) == (original, after)
        assert details["accuracy"]["before"]["test"] == before
        drop = accuracy(trained_network(), dataset.val, dataset) - accuracy(recovered.network, dataset.val, dataset)
        assert recovered.validation_drop == pytest.approx(drop)
        assert details["method"] == "fine_tuning" and details["training"]["kept"]
        assert details["training"]["steps"] == 8 * (1257 // 64) and details["training"]["batch_size"] == 64
        assert details["examples"] == {"train": 1257, "val": 180, "test": 360}
        assert details["accuracy"]["after"]["test"] == after
        steps = [event.step for event in events if event.step is not None]
        assert steps == sorted(steps) and steps[-1] == details["training"]["steps"]
        assert all(event.stage == "recover" for event in events)

    def test_graph_and_names_stay_and_the_inputs_are_not_touched(self, dataset):
        before = {name: tensor.clone() for name, tensor in pruned_network().tensors.items()}
        recovered = run(dataset, epochs=1)
        assert recovered.network.graph is pruned_network().graph
        assert recovered.network.tensors.keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in pruned_network().tensors.items())

    def test_a_seed_gives_the_same_network_and_another_seed_another(self, dataset):
        first, again, other = (run(dataset, seed=seed, epochs=1).network.tensors for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)

    def test_test_images_and_labels_have_no_influence(self, dataset, tmp_path):
        images, labels, split = digits()
        test = split == "test"
        images, labels = images.copy(), labels.copy()
        images[test], labels[test] = 255 - images[test], 9 - labels[test]
        other = load_dataset(save_digits(tmp_path, x=images, y=labels))
        first, second = run(dataset, epochs=1), run(other, epochs=1)
        assert first.accuracy_after != second.accuracy_after
        assert all(torch.equal(first.network.tensors[n], second.network.tensors[n]) for n in first.network.tensors)

    def test_harmful_training_is_thrown_away(self, dataset):
        recovered = run(dataset, epochs=1, learning_rate=10.0)
        stages = recovered.details["validation_accuracy"]
        assert not recovered.details["training"]["kept"]
        assert stages.get("fine_tuning", 0) < stages["batch_norm_transfer"]
        assert accuracy(recovered.network, dataset.val, dataset) == max(stages.values())

    def test_diverging_training_is_tried_again_at_a_lower_rate(self, dataset, monkeypatch):
        monkeypatch.setitem(schedules.LEARNING_RATES, "sgd", 1e5)
        monkeypatch.setattr("core.recovery.training_attempts.RETRY_FACTOR", 2e-7)
        training = run(dataset, epochs=2).details["training"]
        assert training["retried"] and training["kept"] and not training["diverged"]
        assert training["learning_rate"] == pytest.approx(0.01 * NEAR_FACTOR)

    def test_a_start_near_the_original_is_trained_at_a_smaller_rate_unless_one_is_given(self, dataset):
        original, network = trained_network(), pruned_network()
        judge = AccuracyJudge(original, dataset, CPU)
        whole = judge.value(original)

        def rate(value, **config):
            steps = Steps(Checkpoint(), "recover", network)
            config = RecoveryConfig(epochs=1, **config)
            found = train(
                network,
                "start",
                value,
                original,
                dataset,
                config,
                judge,
                0,
                CPU,
                silent,
                steps,
                kept=pruned_and_kept()[1],
            )
            return found.details["learning_rate"] / (1 if not found.details["retried"] else RETRY_FACTOR)

        assert rate(whole - 2 * NEAR_LOSS) == pytest.approx(0.02 * 64 / 128)
        assert rate(whole - NEAR_LOSS / 2) == pytest.approx(NEAR_FACTOR * 0.02 * 64 / 128)
        assert rate(0.0, learning_rate=0.005) == rate(whole, learning_rate=0.005) == 0.005

    def test_no_epochs_leave_the_closed_forms_alone(self, dataset):
        recovered = run(dataset, epochs=0)
        assert recovered.details["method"] == "least_squares_refit"
        assert recovered.accuracy_after > recovered.details["accuracy"]["before"]["test"] + 0.1
        assert recovered.details["training"] == {"epochs": 0}

    def test_what_the_user_fixes_is_used(self, dataset):
        training = run(dataset, epochs=1, learning_rate=0.003, batch_size=100, distill=False).details["training"]
        assert (training["learning_rate"], training["batch_size"], training["steps"], training["distill"]) == (
            0.003,
            100,
            12,
            False,
        )

    def test_networks_that_view_their_activations_can_be_trained(self, dataset):
        class Flattening(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm, self.head = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(216, 10)

            def forward(self, x):
                return self.head(self.norm(self.conv(x)).relu().view(x.shape[0], -1))

        torch.manual_seed(0)
        original = Network.from_module(Flattening(), {"input": (1, 8, 8)})
        start = original.with_tensors({**original.tensors, "head.bias": original.tensors["head.bias"] + 1})
        recovered = recover(
            start,
            original,
            dataset,
            RecoveryConfig(epochs=5, learning_rate=0.05, distill=False),
            kept={},
            seed=0,
        )
        assert recovered.details["accuracy"]["before"]["test"] < 0.3 and recovered.accuracy_after > 0.8

    def test_an_unchanged_network_is_measured_and_left_alone(self, dataset):
        recovered = recover(
            trained_network(),
            trained_network(),
            dataset,
            RecoveryConfig(),
            kept={},
            seed=0,
        )
        assert recovered.network is trained_network() and recovered.validation_drop == 0
        assert recovered.accuracy_after == recovered.accuracy_original > 0.97


class TestLoss:
    def test_loss_is_the_weighted_sum_of_distillation_and_cross_entropy(self):
        torch.manual_seed(0)
        scores, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
        p, q = (teacher / 4).softmax(1), (scores / 4).softmax(1)
        divergence = (p * (p / q).log()).sum(1).mean()
        entropy = -scores.softmax(1)[torch.arange(5), labels].log().mean()
        targets = Targets(labels)
        assert torch.allclose(labelled_loss(scores, targets, teacher), 0.9 * 16 * divergence + 0.1 * entropy)
        assert torch.allclose(labelled_loss(scores, targets, None), entropy)

    def test_biases_and_norms_do_not_decay(self):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        decayed, free = parameter_groups(module.parameters(), 1e-4)
        assert decayed["weight_decay"] == 1e-4 and [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
        assert free["weight_decay"] == 0 and len(free["params"]) == 4


class TestAugmentation:
    def test_crops_are_windows_of_the_padded_image_and_flips_mirror_it(self):
        images = torch.randint(1, 256, (64, 2, 5, 6), dtype=torch.uint8)
        augmented = Augmentation(flip=True, padding=1)(images, torch.Generator().manual_seed(0))
        assert augmented.shape == images.shape and augmented.dtype == torch.uint8
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
        seen = set()
        for index in range(64):
            windows = {
                (top, left, flip): window.flip(2) if flip else window
                for top in range(3)
                for left in range(3)
                for flip in (False, True)
                for window in [padded[index, :, top : top + 5, left : left + 6]]
            }
            matches = [key for key, window in windows.items() if torch.equal(window, augmented[index])]
            assert len(matches) == 1
            seen.add(matches[0])
        assert len(seen) > 12

    def test_digits_bear_neither_crops_nor_flips(self, dataset):
        augmentation, measured = choose_augmentation(trained_network(), dataset, seed=0, device=CPU)
        assert not augmentation.active
        assert measured["flip"]["accuracy_drop"] > 0.1 and not measured["flip"]["used"]

    def test_what_the_original_does_not_notice_is_used(self, tmp_path):
        class Brightness(nn.Module):
            def forward(self, x):
                level = x[:, :, 1:-1, 1:-1].mean((1, 2, 3))
                return torch.stack([0.5 - level, level - 0.5], 1)

        images = torch.full((40, 8, 8), 20, dtype=torch.uint8)
        images[::2] = 230
        path = save_digits(
            tmp_path, x=images.numpy(), y=(torch.arange(40) % 2 == 0).long().numpy(), split=["train"] * 40
        )
        network = Network.from_module(Brightness(), {"input": (1, 8, 8)})
        augmentation, measured = choose_augmentation(network, load_dataset(path), seed=0, device=CPU)
        assert augmentation == Augmentation(flip=True, padding=1)
        assert measured["crop"] == {"used": True, "accuracy_drop": 0.0, "padding": 1}


class TestSchedule:
    def plan(self, examples, **config):
        return plan_schedule(RecoveryConfig(**config), examples, pruned_network(), trained_network(), CPU)

    def test_rate_warms_up_and_falls_to_zero(self):
        schedule = Schedule(500, 100, 128, 0.02, 50, True, False)
        rates = [schedule.learning_rate_at(step) for step in range(500)]
        assert rates[0] == pytest.approx(0.02 / 51) and max(rates) == pytest.approx(0.02) == rates[50]
        assert rates[275] == pytest.approx(0.01) and rates[-1] < 1e-6
        assert all(a >= b for a, b in itertools.pairwise(rates[50:]))

    @pytest.mark.parametrize(
        ("examples", "batch", "epochs"), [(40, 8, 60), (1257, 64, 60), (45_000, 128, 3), (1_000_000, 128, 1)]
    )
    def test_small_sets_get_many_epochs_and_large_ones_few(self, examples, batch, epochs):
        schedule = self.plan(examples)
        assert schedule.batch_size == batch
        assert schedule.steps == epochs * (examples // batch)
        assert schedule.learning_rate == pytest.approx(0.02 * batch / 128)
        assert schedule.warm_up_steps == min(50, schedule.steps // 10)

    def test_costly_networks_get_fewer_steps_and_smaller_batches(self, monkeypatch):
        full = self.plan(45_000)
        step = 3 * profile(pruned_network()).costs.macs + profile(trained_network()).costs.macs
        monkeypatch.setitem(schedules.MAX_MACS, "cpu", 100 * 128 * step)
        assert self.plan(45_000).steps == 100 < full.steps
        assert self.plan(45_000, distill=False).steps > 100
        monkeypatch.setitem(schedules.MAX_ACTIVATION_BYTES, "cpu", 20 * schedules._activation_bytes(pruned_network()))
        assert self.plan(45_000).batch_size == 20

    def test_given_epochs_are_not_shortened_and_a_batch_is_never_larger_than_the_set(self, monkeypatch):
        monkeypatch.setitem(schedules.MAX_MACS, "cpu", 1)
        assert self.plan(1257, epochs=3).steps == 3 * 19
        assert self.plan(30, batch_size=64).batch_size == 30
