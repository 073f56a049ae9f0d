"""Each epoch of training is one line for a person, told once."""

import io

from pennyweight.epochs import EpochLines, epoch_line
from pennyweight.errors import ServiceUnreachable
from pennyweight.stage_bar import StageBar
from rich.console import Console

EPOCH = {
    "epoch": 3,
    "epochs": 10,
    "loss": 0.41234,
    "train_accuracy": 0.931,
    "validation_accuracy": 0.912,
    "output_error": None,
    "learning_rate": 0.0124,
    "images_per_s": 1840.2,
    "seconds": 24.0,
    "eta_s": 240.0,
    "attempt": 1,
}


def test_a_line_holds_every_figure_with_its_unit():
    line = "epoch 3/10  loss 0.4123  train 93.10 %  validation 91.20 %  rate 0.0124  1,840 images/s  4 min left"
    assert epoch_line(EPOCH) == line
    unlabelled = {**EPOCH, "train_accuracy": None, "validation_accuracy": None, "output_error": 0.07812}
    assert "output error 0.07812" in epoch_line(unlabelled) and "train" not in epoch_line(unlabelled)


def test_every_epoch_is_told_once_and_the_last_one_after_the_stage():
    class Events:
        """The first three events, then a fourth."""

        def __init__(self):
            self.there = [{"seq": 1, "type": "job.queued", "data": {}}]
            self.asked = []

        def events(self, job_id, *, after):
            self.asked.append(after)
            return iter([event for event in self.there if event["seq"] > after])

    client, text = Events(), io.StringIO()
    lines = EpochLines(client, StageBar(Console(file=text, width=200)))
    job = {"id": "job_1", "status": "running", "progress": None}
    lines({**job, "stage": "plan"})
    assert client.asked == []
    client.there += [{"seq": seq, "type": "job.epoch", "data": {**EPOCH, "epoch": seq}} for seq in (2, 3)]
    lines({**job, "stage": "recover"})
    lines({**job, "stage": "recover"})
    client.there.append({"seq": 4, "type": "job.epoch", "data": {**EPOCH, "epoch": 4}})
    lines({**job, "stage": "deliver"})
    lines({**job, "stage": None, "status": "succeeded"})
    told = [line for line in text.getvalue().splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in told] == ["2/10", "3/10", "4/10"]
    assert client.asked == [0, 3, 3]


def test_a_service_that_is_away_for_a_look_costs_no_line():
    class Events:
        away = True

        def events(self, job_id, *, after):
            if self.away:
                raise ServiceUnreachable("No answer.")
            return iter([{"seq": 1, "type": "job.epoch", "data": EPOCH}] if after < 1 else [])

    client, text = Events(), io.StringIO()
    lines = EpochLines(client, StageBar(Console(file=text, width=200)))
    job = {"id": "job_1", "status": "running", "progress": None}
    lines({**job, "stage": "recover"})
    client.away = False
    lines({**job, "stage": "deliver"})
    assert [line.split()[1] for line in text.getvalue().splitlines() if line.startswith("epoch")] == ["3/10"]
