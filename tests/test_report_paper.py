"""Which reported row stands beside a run."""

from __future__ import annotations

import pytest
from report_samples import resnet_modules, summary

from rift.report.paper import paper, paper_row, paper_scan


@pytest.mark.parametrize(
    ("changes", "source", "at", "rift"),
    [
        ({}, "Table 1", (81.46, 53.63), (83.44, 53.65)),
        ({"model": "wrn34_10", "dataset": "cifar100"}, "Table 1", (62.35, 31.66), (64.56, 31.64)),
        ({"model": "resnet34", "dataset": "tiny_imagenet"}, "Table 1", (50.96, 24.27), (52.54, 24.37)),
        ({"method": "trades"}, "Table 2", (81.54, 53.31), (81.87, 53.30)),
        ({"method": "mart", "dataset": "cifar100"}, "Table 2", (51.46, 31.47), (52.42, 31.48)),
        ({"target": "all"}, "Table 3", (81.46, 53.63), (83.56, 52.66)),
        ({"target": "most_critical"}, "Table 3", (81.46, 53.63), (83.36, 52.48)),
        ({"target": "top_k", "target_modules": ["a", "b", "c"]}, "Table 4", (81.46, 53.63), (83.59, 52.22)),
        ({"target": "top_k", "target_modules": ["a"]}, "Table 1", (81.46, 53.63), (83.44, 53.65)),
        ({"target": "layer2.1.conv2"}, "Table 1", (81.46, 53.63), (83.44, 53.65)),
        ({"target": None, "rift": None}, "Table 1", (81.46, 53.63), (83.44, 53.65)),
    ],
)
def test_row(changes, source, at, rift):
    row = paper_row(summary(**changes))
    assert row.source == source
    assert (row.at["clean"], row.at["robust"]) == at
    assert (row.rift["clean"], row.rift["robust"]) == rift
    assert row.delta("clean") == pytest.approx(rift[0] - at[0])


@pytest.mark.parametrize("model", ["timm_resnet18", "resnet18_w16", "resnet_small", "wrn34_5"])
def test_another_network_than_the_paper_s_gets_no_row(model):
    assert paper_row(summary(model=model)) is None
    assert paper_scan(summary(model=model)) == {}


@pytest.mark.parametrize("target", ["conv1", "none", "top_k"])
def test_a_target_that_the_paper_has_not_gets_no_reported_rift_value(target):
    row = paper_row(summary(target=target, target_modules=["a", "b", "c", "d"]))
    assert row.source == "Table 1, AT only"
    assert row.at["clean"] == 81.46
    assert row.rift is None
    assert row.delta("clean") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "resnet_small"},
        {"dataset": "digits"},
        {"method": "trades", "model": "resnet34"},
        {"attack": {"name": "pgd10", "norm": "linf", "epsilon": "4/255", "epsilon_value": 4 / 255}},
        {"attack": {"name": "pgd10", "norm": "l2", "epsilon": "8/255", "epsilon_value": 8 / 255}},
        {"attack": None},
    ],
)
def test_no_row_for_another_setting_or_threat_model(changes):
    assert paper_row(summary(**changes)) is None
    assert paper_scan(summary(**changes)) == {}


def test_figure_3_is_there_for_its_run_alone():
    scan = paper_scan(summary())
    assert scan["layer2.1.conv2"] == {"mrc": 0.09, "robust_accuracy_drop": 2.86}
    assert scan["layer4.1.conv1"] == {"mrc": 12.94, "robust_accuracy_drop": 53.03}
    assert paper_scan(summary(method="trades")) == {}


def test_reported_file_is_consistent():
    rows = paper()["rows"]
    keys = [tuple(row[key] for key in ("model", "dataset", "method", "target")) for row in rows]
    assert len(set(keys)) == len(keys) == 23
    for row in rows:
        assert len(row["at"]) == len(row["rift"]) == 3
        clean, ood, robust = row["at"]
        assert 100 > clean > ood > robust > 0
    assert set(paper()["scans"][0]["modules"]) <= set(resnet_modules("resnet18"))
