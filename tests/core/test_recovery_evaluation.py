"""A dataset that does not fit a network, or that the original network gets wrong, is refused with the reason."""

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import EngineError
from core.module_form import to_module
from core.network import Network
from core.recovery import accuracy, check_baseline, check_fits, load_dataset
from core.recovery.evaluation import least_baseline, predict
from tests.core.recovery_cases import digits, plain_network, save_digits, trained_network


@pytest.fixture
def dataset(tmp_path):
    return load_dataset(save_digits(tmp_path))


def message_of(check, *arguments):
    with pytest.raises(EngineError) as caught:
        check(*arguments)
    assert caught.value.code == "dataset_invalid"
    return caught.value.message


class TestFit:
    def test_a_fitting_dataset_passes(self, dataset):
        check_fits(dataset, trained_network())

    def test_other_image_shapes_are_refused_with_both_shapes(self, dataset):
        network = Network.from_module(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), {"input": (3, 32, 32)})
        message = message_of(check_fits, dataset, network)
        assert "1×8×8" in message and "3×32×32" in message and "input_shape" in message

    def test_labels_beyond_the_outputs_are_refused_with_both_counts(self, dataset):
        message = message_of(check_fits, dataset, plain_network(classes=7))
        assert "up to 9" in message and "7 outputs" in message

    def test_labels_need_a_classifier_and_unlabelled_images_do_not(self, dataset, tmp_path):
        network = Network.from_module(nn.Conv2d(1, 4, 3), {"input": (1, 8, 8)})
        assert "4×6×6" in message_of(check_fits, dataset, network)
        images, _, _ = digits()
        np.savez(tmp_path / "x.npz", x=images)
        check_fits(load_dataset(tmp_path / "x.npz"), network)

    def test_networks_with_two_inputs_are_refused(self, dataset):
        class Sum(nn.Module):
            def forward(self, a, b):
                return (a + b).flatten(1)

        network = Network.from_module(Sum(), {"a": (1, 8, 8), "b": (1, 8, 8)})
        assert "2 inputs" in message_of(check_fits, dataset, network)


class TestAccuracy:
    def test_accuracy_is_the_share_of_right_answers_whatever_the_batches(self, dataset, monkeypatch):
        network = trained_network()
        inputs = dataset.test.images.float() / 255
        expected = (network.run(inputs)[0].argmax(1) == dataset.test.labels).float().mean().item()
        assert accuracy(network, dataset.test, dataset) == pytest.approx(expected)
        monkeypatch.setattr("core.recovery.evaluation._MAX_BATCH", 7)
        assert accuracy(network, dataset.test, dataset) == pytest.approx(expected)
        assert expected > 0.97

    def test_a_module_is_scored_in_evaluation_mode_and_its_mode_given_back(self, dataset):
        module = to_module(trained_network()).train()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        assert accuracy(module, dataset.test, dataset) == accuracy(trained_network(), dataset.test, dataset)
        assert module.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())

    def test_predictions_keep_the_order_of_the_images(self, dataset):
        scores = predict(trained_network(), dataset.val.images, dataset)
        single = trained_network().run(dataset.val.images[100:101].float() / 255)[0]
        assert torch.allclose(scores[100], single[0], atol=1e-5)

    def test_samples_are_spread_over_the_split(self, dataset):
        sample = dataset.train.sample(100)
        assert torch.equal(sample.labels, dataset.train.labels[torch.arange(100) * 1257 // 100])
        assert dataset.train.sample(5000) is dataset.train


class TestBaseline:
    def test_the_baseline_of_a_right_dataset_is_returned(self, dataset):
        both = (180 * accuracy(trained_network(), dataset.val, dataset)) + (
            360 * accuracy(trained_network(), dataset.test, dataset)
        )
        assert check_baseline(trained_network(), dataset) == pytest.approx(both / 540)

    def test_renumbered_labels_are_refused(self, tmp_path):
        dataset = load_dataset(save_digits(tmp_path, y=(digits()[1] + 1) % 10))
        message = message_of(check_baseline, trained_network(), dataset)
        assert "chance is 10.0%" in message and "20.0%" in message and "another order" in message

    def test_a_wrong_normalization_is_refused_and_named(self, tmp_path):
        dataset = load_dataset(save_digits(tmp_path), normalization=((5.0,), (0.01,)))
        message = message_of(check_baseline, trained_network(), dataset)
        assert "normalised" in message and "mean [5.0]" in message

    def test_a_test_split_sorted_by_class_is_sampled_across_all_classes(self, tmp_path, monkeypatch):
        images, labels, split = digits()
        order = np.argsort(labels, kind="stable")
        dataset = load_dataset(save_digits(tmp_path, x=images[order], y=labels[order], split=split[order]))
        monkeypatch.setattr("core.recovery.evaluation._BASELINE_EXAMPLES", 60)
        assert check_baseline(trained_network(), dataset) > 0.95

    def test_unlabelled_datasets_have_no_baseline(self, tmp_path):
        np.savez(tmp_path / "x.npz", x=digits()[0])
        assert check_baseline(trained_network(), load_dataset(tmp_path / "x.npz")) is None

    def test_the_least_baseline_is_twice_chance_and_reachable(self):
        assert [least_baseline(classes) for classes in (2, 3, 10, 1000)] == pytest.approx([0.625, 2 / 3, 0.2, 0.002])
