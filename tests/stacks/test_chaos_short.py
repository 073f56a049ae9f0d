"""A short run of `benchmarks.chaos`: everything is killed, and every accepted job ends once."""

from __future__ import annotations

import json

from benchmarks.chaos import run


def test_every_accepted_job_ends_once_whatever_is_killed():
    report = run(jobs=40, workers=2, slots=2, seed=1, every_s=0.7, deadline_s=240)
    assert report.posted == 40 and sum(report.faults.values()) > 0
    assert report.good, report.lines()
    told = json.loads(json.dumps(report.document()))
    assert told["statuses"] == dict(report.statuses) and told["recoveries_s"]["count"] == len(report.recoveries_s)
