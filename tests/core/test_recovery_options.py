"""What can be asked of training is done, and what cannot be done is refused with its bounds."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import EngineError
from core.module_form import to_module
from core.network import Network
from core.recovery import RecoveryConfig, load_dataset, recover
from core.recovery.augmentation import Augmentation, choose_augmentation, cutout, mixup
from core.recovery.averaging import Average
from core.recovery.config import BOUNDS, CHOICES
from core.recovery.judges import OutputJudge
from core.recovery.objective import Targets, labelled_loss, output_loss
from core.recovery.optimizers import optimizer_for
from core.recovery.outputs import OutputScales, relative_error
from core.recovery.schedule import Schedule, plan_schedule
from core.recovery.teacher import folded
from core.recovery.threads import fastest_threads
from store.contract import Recovery
from tests.core.recovery_cases import digits, pruned_and_kept, pruned_network, save_digits, trained_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return load_dataset(save_digits(tmp_path_factory.mktemp("labelled")))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    images, _, split = digits()
    path = tmp_path_factory.mktemp("unlabelled") / "digits.npz"
    np.savez(path, x=images, split=split)
    return load_dataset(path)


def run(dataset, progress=lambda event: None, **config):
    return recover(
        pruned_network(),
        trained_network(),
        dataset,
        RecoveryConfig(**{"epochs": 2, "threads": 1, **config}),
        kept=pruned_and_kept()[1],
        seed=1,
        progress=progress,
    )


class TestConfig:
    @pytest.mark.parametrize("name", BOUNDS)
    def test_numbers_out_of_bounds_are_refused_with_the_bounds(self, name):
        least, most = BOUNDS[name]
        RecoveryConfig(**{name: least}), RecoveryConfig(**{name: most})
        for wrong in (least - 1, most + 1, float("nan")):
            with pytest.raises(EngineError, match=rf"recovery.{name} is .*{most:g}".replace("+", r"\+")) as refused:
                RecoveryConfig(**{name: wrong})
            assert (refused.value.code, refused.value.param) == ("invalid_request", f"/recovery/{name}")

    @pytest.mark.parametrize("name", CHOICES)
    def test_unknown_names_are_refused_with_the_known_ones(self, name):
        with pytest.raises(EngineError, match=CHOICES[name][0]):
            RecoveryConfig(**{name: "other"})

    def test_the_contract_has_the_same_options_and_bounds(self):
        assert set(Recovery.model_fields) == {field.name for field in dataclasses.fields(RecoveryConfig)}
        for name, (least, most) in BOUNDS.items():
            for value in (least, most):
                asked = Recovery(**{name: value}).model_dump(exclude_none=True)
                assert getattr(RecoveryConfig(**asked), name) == value
            for value in (least - 1, most + 1):
                with pytest.raises(ValueError, match=name):
                    Recovery(**{name: value})
        for name, known in CHOICES.items():
            assert [getattr(Recovery(**{name: value}), name) for value in known] == list(known)


class TestOptions:
    def test_every_option_is_used_and_reported(self, labelled):
        asked = {"optimizer": "adamw", "schedule": "one_cycle", "weight_decay": 0.05, "label_smoothing": 0.1}
        asked |= {"ema_decay": 0.9, "gradient_clip": 2.0, "cutout": 0.2, "mixup": 0.3, "precision": "float32"}
        training = run(labelled, epochs=1, **asked).details["training"]
        assert {name: training[name] for name in asked} == asked
        assert training["threads"] == 1 and training["layout"] == "channels_last"

    def test_one_cycle_rises_and_falls(self):
        schedule = Schedule(200, 100, 64, 0.1, 0, True, False, shape="one_cycle")
        rates = [schedule.learning_rate_at(step) for step in range(200)]
        assert rates[0] == pytest.approx(0.004) and max(rates) == rates[60] == pytest.approx(0.1)
        assert rates[-1] < 2e-4
        assert all(a < b for a, b in itertools.pairwise(rates[:61])) and all(
            a > b for a, b in itertools.pairwise(rates[60:])
        )

    def test_optimisers_decay_kernels_only(self):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
            optimizer = optimizer_for(module, Schedule(1, 1, 1, 0.1, 0, True, False, optimizer=name, weight_decay=0.3))
            assert type(optimizer) is kind
            assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]

    def test_patience_stops_and_gives_the_best_epoch(self, labelled):
        told = []
        found = run(labelled, progress=told.append, epochs=40, patience=2, distill=False, learning_rate=0.05)
        training = found.details["training"]
        values = [event.epoch.validation_accuracy for event in told if event.epoch]
        assert 3 <= len(values) < 40 and training["best_epoch"] == len(values) - 2
        assert max(values) == pytest.approx(found.details["validation_accuracy"]["fine_tuning"], abs=1e-6)
        assert values.index(max(values)) + 1 == training["best_epoch"]

    def test_an_average_forgets_where_it_began_and_follows_the_weights(self):
        module = nn.BatchNorm1d(2)
        average = Average(module, 0.9)
        with torch.no_grad():
            module.weight.fill_(5.0)
        module.num_batches_tracked += 7
        average.update(module, 0)
        assert average.module.weight.tolist() == pytest.approx([5 - 4 * 2 / 11] * 2)
        for step in range(1, 100):
            average.update(module, step)
        assert average.module.weight.tolist() == pytest.approx([5.0] * 2, abs=1e-3)
        assert average.module.num_batches_tracked == 7

    def test_cutout_blanks_one_square_per_image(self):
        blanked = cutout(torch.ones(200, 2, 10, 8), 0.5, torch.Generator().manual_seed(0)) == 0
        assert torch.equal(blanked[:, 0], blanked[:, 1])
        rows, columns = blanked[:, 0].any(2).sum(1), blanked[:, 0].any(1).sum(1)
        assert torch.equal(blanked[:, 0].sum((1, 2)), rows * columns)
        assert rows.max() == columns.max() == 4 and rows.min() == 2

    def test_mixup_mixes_images_and_labels_alike(self):
        images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 2)
        mixed, others, share = mixup(images, 0.4, torch.Generator().manual_seed(0))
        assert 0.5 <= share <= 1 and torch.allclose(mixed, share * images + (1 - share) * images[others])
        scores, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])
        both = labelled_loss(scores, Targets(labels, (labels[others], share)), None)
        first, second = (labelled_loss(scores, Targets(one), None) for one in (labels, labels[others]))
        assert torch.allclose(both, share * first + (1 - share) * second)

    def test_a_folded_teacher_says_the_same(self):
        module = to_module(trained_network())
        lighter = folded(to_module(trained_network()))
        x = torch.rand(4, 1, 8, 8)
        assert torch.allclose(module(x), lighter(x), atol=1e-5)
        assert not any(
            isinstance(one, nn.BatchNorm2d) for name, one in lighter.named_modules() if name in calls(lighter)
        )

    def test_threads_are_those_that_were_fastest(self, monkeypatch):
        now = {"threads": 4, "clock": 0.0}
        monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
        monkeypatch.setattr(torch, "set_num_threads", lambda count: now.update(threads=count))
        monkeypatch.setattr("core.recovery.threads.time.perf_counter", lambda: now["clock"])
        for cost, chosen in (
            ({4: 5.0, 2: 2.0, 1: 3.0}, 2),
            ({4: 2.0, 2: 1.95, 1: 3.0}, 4),
            ({4: 9.0, 2: 9.0, 1: 1.0}, 1),
        ):
            count, timed = fastest_threads(lambda cost=cost: now.update(clock=now["clock"] + cost[now["threads"]]))
            assert count == chosen and timed == pytest.approx(cost)
            assert now["threads"] == 4


def calls(module):
    return {node.target for node in module.graph.nodes if node.op == "call_module"}


class TestEpochs:
    def test_each_epoch_tells_its_figures(self, labelled):
        told = []
        found = run(labelled, progress=told.append, epochs=3)
        epochs = [event.epoch for event in told if event.epoch]
        assert [(one.epoch, one.epochs) for one in epochs] == [(1, 3), (2, 3), (3, 3)]
        assert [dataclasses.asdict(one) for one in epochs] == found.details["training"]["epoch_records"]
        last = epochs[-1]
        assert last.train_accuracy > 0.8 and last.validation_accuracy > 0.8 and last.output_error is None
        assert last.images_per_s > 0 and last.eta_s == 0 and epochs[0].eta_s > 0
        assert last.loss < epochs[0].loss and last.learning_rate < epochs[0].learning_rate


class TestWithoutLabels:
    def test_training_on_the_originals_outputs_lowers_the_error_further(self, unlabelled, labelled):
        told = []
        found = run(unlabelled, progress=told.append, epochs=6)
        errors = found.details["output_error"]
        assert errors["fine_tuning"] < 0.95 * errors["least_squares_refit"] < errors["pruned"]
        assert found.details["method"] == "fine_tuning" and found.accuracy_after is None
        last = [event.epoch for event in told if event.epoch][-1]
        assert last.output_error == pytest.approx(errors["fine_tuning"], rel=0.2)
        assert last.train_accuracy is last.validation_accuracy is None

    def test_a_network_of_several_outputs_learns_all_of_them(self, unlabelled):
        class Heads(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
                self.map, self.scores = nn.Conv2d(8, 2, 1), nn.Linear(8, 3)

            def forward(self, x):
                x = self.norm(self.body(x)).relu()
                return self.map(x), self.scores(x.mean((2, 3))).softmax(1)

        torch.manual_seed(0)
        original = Network.from_module(Heads(), {"input": (1, 8, 8)})
        start = original.with_tensors(
            {
                name: tensor + 0.3 * torch.randn_like(tensor) if name.endswith("weight") else tensor
                for name, tensor in original.tensors.items()
            }
        )
        found = recover(start, original, unlabelled, RecoveryConfig(epochs=8, threads=1), kept={}, seed=0)
        judge = OutputJudge(original, unlabelled, CPU)
        assert judge.scales.probabilities == (False, True)
        errors = found.details["output_error"]
        assert errors[found.details["method"]] == min(errors.values()) < 0.5 * errors["pruned"]
        assert judge.value(found.network) == pytest.approx(min(errors.values()), abs=1e-5)

    def test_things_of_different_size_in_one_output_are_weighed_apart(self):
        generator = torch.Generator().manual_seed(0)
        target = torch.randn(50, 20, 3, generator=generator) * torch.tensor([100.0, 100.0, 30.0])
        (weight,) = OutputScales.of([target]).weights
        assert weight.shape == (1, 1, 3)
        even = torch.randn(50, 20, 3, generator=generator)
        assert OutputScales.of([even]).weights[0].ndim == 0
        scales = OutputScales.of([target, torch.ones(50, dtype=torch.int64)])
        assert scales.weights[1] is None
        squares = scales.squares([target * 1.1, torch.zeros(50)], [target, torch.zeros(50)])
        assert relative_error([(float(a), float(b)) for a, b in squares]) == pytest.approx(0.1, rel=1e-4)
        exact = output_loss([target, torch.zeros(50)], [target, torch.zeros(50)], scales)
        assert exact == 0

    def test_training_minimises_the_square_of_the_figure_that_judges(self):
        generator = torch.Generator().manual_seed(0)
        # Mostly silent scores beside boxes, and a map: what is learnt of each must not depend on how silent it is.
        boxes = torch.randn(10, 40, 3, generator=generator) * torch.tensor([10.0, 10.0, 0.1])
        map = torch.randn(10, 1, 4, 4, generator=generator)
        scales = OutputScales.of([boxes, map])
        found = [boxes + 0.1 * torch.randn(boxes.shape, generator=generator), map * 1.02]
        figure = relative_error([(float(a), float(b)) for a, b in scales.squares(found, [boxes, map])])
        assert float(output_loss(found, [boxes, map], scales)) == pytest.approx(figure**2, rel=0.01)

    def test_one_image_with_enormous_boxes_does_not_outweigh_the_others(self):
        target = torch.ones(10, 8)
        scales = OutputScales.of([target.unsqueeze(2)])
        found = 1.1 * target.unsqueeze(2)
        found[0] = 1e8
        found.requires_grad_()
        loss = output_loss([found], [target.unsqueeze(2)], scales)
        loss.backward()
        assert loss.item() < 5
        assert found.grad[0].abs().sum() < found.grad[1].abs().sum()

    def test_digits_are_not_flipped_without_labels_either(self, unlabelled):
        augmentation, measured = choose_augmentation(trained_network(), unlabelled, seed=0, device=CPU)
        assert augmentation == Augmentation() and measured["flip"]["disagreement"] > 0.1

    def test_a_detectors_default_optimiser_adapts(self, unlabelled):
        schedule = plan_schedule(RecoveryConfig(), 1257, pruned_network(), trained_network(), CPU, optimizer="adamw")
        assert schedule.optimizer == "adamw" and schedule.learning_rate == pytest.approx(1e-3 * (64 / 128) ** 0.5)
