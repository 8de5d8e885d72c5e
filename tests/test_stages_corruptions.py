"""Accuracy under corruption as a stage: counts, means, resumption, and what decides the result."""

from __future__ import annotations

import pytest
import torch
from tiny_jobs import Killed, restored_process, stage_folder, tiny_config, tiny_session

import rift.measurements
from rift.assembly import make_runtime, make_session
from rift.corruption_names import ALL, SELECTIONS, STANDARD
from rift.data import load_dataset
from rift.data.generated import GeneratedSet
from rift.errors import UserError
from rift.pipeline import Pipeline
from rift.stages import corruption_evaluation, natural_shift
from rift.stages.corruption_evaluation import named_means, per_image
from rift.store import Store
from rift.summary import corruption_tables, intervals, measured_accuracies
from rift.tracking import Tracker

CORRUPTIONS, SEVERITIES = ("contrast", "gaussian_noise", "brightness"), (1, 5)


@pytest.fixture(scope="module")
def session():
    data = load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=100, test_limit=90)
    return tiny_session(data)


@pytest.fixture(scope="module")
def state(_trained):
    return {name: value.clone() for name, value in _trained.state_dict().items()}


def evaluated(session, folder, state, corrupted=None):
    images = corrupted or GeneratedSet(session.dataset.test)
    return corruption_evaluation(session, folder, state, CORRUPTIONS, SEVERITIES, images)


@pytest.fixture(scope="module")
def result(session, state, tmp_path_factory):
    folder = stage_folder(tmp_path_factory.mktemp("corruptions"))
    return folder, evaluated(session, folder, state)


def test_the_counts_are_those_of_the_network_on_the_corrupted_images(session, state, result):
    folder, found = result
    network, corrupted = session.network(state), GeneratedSet(session.dataset.test)
    verdicts = folder.load("verdicts")
    assert set(verdicts) == set(found["correct"]) == {f"{c}/{s}" for c in CORRUPTIONS for s in SEVERITIES}
    for version, right in verdicts.items():
        corruption, severity = version.split("/")
        images = torch.cat(list(corrupted.batches(corruption, int(severity), 17, torch.device("cpu"))))
        with torch.no_grad():
            expected = network(images / 255).argmax(1) == session.dataset.test.labels
        assert torch.equal(right.bool(), expected)
        assert found["correct"][version] == int(expected.sum())
    assert found["num_images"] == 90 and found["kind"] == "generated" and found["paired"]


def test_every_corruption_is_a_row_with_its_severities(result):
    folder, found = result
    rows = folder.rows()
    assert [(row["index"], row["corruption"]) for row in rows] == list(enumerate(CORRUPTIONS))
    for row in rows:
        shares = [found["correct"][f"{row['corruption']}/{s}"] / 90 for s in SEVERITIES]
        assert [row[f"severity_{s}"] for s in SEVERITIES] == shares
        assert row["accuracy"] == pytest.approx(sum(shares) / 2)


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_killed_and_given_again_it_gives_the_same(session, state, tmp_path, result, after):
    class Fragile(GeneratedSet):
        made = 0

        def batches(self, *arguments):
            if self.made == after:
                raise Killed
            self.made += 1
            return super().batches(*arguments)

    folder = stage_folder(tmp_path)
    with pytest.raises(Killed):
        evaluated(session, folder, state, Fragile(session.dataset.test))
    folder.settle()  # what is saved is written in the background
    again = stage_folder(tmp_path)
    assert evaluated(session, again, state) == result[1]
    assert again.resumed and again.rows() == result[0].rows()


def test_means_are_over_what_they_say():
    accuracies = {f"{name}/{s}": (ALL.index(name) + 1) / (20 * s) for name in ALL for s in range(1, 6)}
    means = named_means(accuracies)
    by_hand = {
        "15x5": [accuracies[f"{n}/{s}"] for n in STANDARD for s in range(1, 6)],
        "15_severity5": [accuracies[f"{n}/5"] for n in STANDARD],
        "18x5": [v for k, v in accuracies.items() if not k.startswith("glass_blur")],
        "all": list(accuracies.values()),
    }
    assert {name: len(values) for name, values in by_hand.items()} == {
        "15x5": 75, "15_severity5": 15, "18x5": 90, "all": 95,
    }  # fmt: skip
    assert means == pytest.approx({name: sum(values) / len(values) for name, values in by_hand.items()})


def test_a_mean_never_covers_fewer_than_it_says():
    full = {f"{name}/{s}": 0.5 for name in ALL for s in range(1, 6)}
    assert set(named_means({k: v for k, v in full.items() if k != "fog/3"})) == {"15_severity5", "all"}
    assert set(named_means({k: v for k, v in full.items() if k != "spatter/3"})) == {
        "15x5",
        "15_severity5",
        "all",
    }


def test_an_image_s_share_is_over_its_versions():
    verdicts = {
        "fog/1": torch.tensor([1, 0]),
        "fog/2": torch.tensor([1, 1]),
        "spatter/1": torch.tensor([0, 0]),
    }
    assert per_image(verdicts, ("fog",)).tolist() == [1.0, 0.5]


# -- in the pipeline ------------------------------------------------------------------------------------


FEW = ("stage.evaluate.corruption_set=[contrast,gaussian_noise]", "stage.evaluate.severities=[1,5]",
       "stage.evaluate.ood=evaluated")  # fmt: skip


def run(output, *overrides):
    with restored_process():
        config = tiny_config(*FEW, *overrides, output=output)
        session = make_session(config, make_runtime(config))
        return config, Pipeline(config, session, Store(output / "store")).run(Tracker())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("measured")
    return (output, *run(output, "stage.evaluate.measure=[pgd,corruptions]"))


def test_each_measurement_of_each_network_is_a_result_of_its_own(finished, tmp_path):
    output, _, folders = finished
    measured = {name: folder.key for name, folder in folders.items() if name.startswith(("evaluate", "corr"))}
    assert set(measured) == {"evaluate_at", "evaluate_rift", "corruptions_at", "corruptions_rift"}
    # Changing one repeats nothing of the other.
    attacked = run(output, "stage.evaluate.measure=[pgd,corruptions]", "stage.evaluate.restarts=1")[1]
    assert attacked["evaluate_at"].key != measured["evaluate_at"]
    assert attacked["corruptions_at"].key == measured["corruptions_at"]
    severer = run(output, "stage.evaluate.measure=[corruptions,pgd]", "stage.evaluate.severities=[5]")[1]
    assert severer["evaluate_rift"].key == measured["evaluate_rift"]
    assert severer["corruptions_rift"].key != measured["corruptions_rift"]
    alone = run(output, "stage.evaluate.measure=[pgd]")[1]
    assert alone["evaluate_at"].key == measured["evaluate_at"] and "corruptions_at" not in alone


def test_what_is_reported_is_read_off_the_verdicts(finished):
    _, config, folders = finished
    results = {name: folder.result() for name, folder in folders.items()}
    for which in ("at", "rift"):
        verdicts = folders[f"corruptions_{which}"].load("verdicts")
        expected = torch.stack(list(verdicts.values())).double().mean().item()
        found = measured_accuracies(config, results, which)
        assert found["ood_accuracy_generated"] == pytest.approx(expected)
        assert "ood_accuracy" not in found, "generated images never stand under the published ones' name"
    tables = corruption_tables(config, results)
    assert tables["kind"] == "generated" and set(tables["at"]["accuracy"]) == set(
        results["corruptions_at"]["correct"]
    )
    found = intervals(config, folders)
    assert set(found) == {"clean", "robust", "robust_per_image", "ood", "ood_beyond_clean"}
    gain = found["ood"]["delta"] - found["clean"]["delta"]
    assert found["ood_beyond_clean"]["delta"] == pytest.approx(gain)
    assert all(one["low"] <= one["delta"] <= one["high"] for one in found.values())


class Published(GeneratedSet):
    """Stands for the published images of a set that has none."""

    kind = "published"
    paired = False


def test_published_images_are_reported_under_their_own_name(tmp_path, monkeypatch):
    opened = []

    def open_published(name, root, *, test, **options):
        opened.append((name, str(root), options["severities"]))
        return Published(test)

    monkeypatch.setattr(rift.measurements, "open_published", open_published)
    config, folders = run(
        tmp_path, "stage.evaluate.measure=[pgd,corruptions]", "dataset.corrupted_root=/sets"
    )
    assert opened == [("digits", "/sets", [1, 5])]
    results = {name: folder.result() for name, folder in folders.items()}
    for which in ("at", "rift"):
        found = measured_accuracies(config, results, which)
        assert "ood_accuracy" in found and "ood_accuracy_generated" not in found
    # Images that are not the clean test images say nothing of what lies beyond the clean difference.
    assert "ood" in intervals(config, folders) and "ood_beyond_clean" not in intervals(config, folders)


def test_other_photographs_of_the_same_classes_are_a_measurement_too(session, state, tmp_path):
    test = session.dataset.test
    found = natural_shift(session, stage_folder(tmp_path), state, test)
    with torch.no_grad():
        right = session.network(state)(test.images / 255).argmax(1) == test.labels
    assert found == {"clean_accuracy": right.double().mean().item(), "num_images": 90}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.evaluate.measure=[pdg]", "did you mean 'pgd'"),
        ("stage.evaluate.measure=[]", "measures nothing"),
        ("stage.evaluate.corruption_set=[gausian_noise]", "did you mean 'gaussian_noise'"),
        ("stage.evaluate.severities=[0]", "severities=0 is not one of 1 to 5"),
        ("stage.evaluate.corruptions=made_up", "corruptions=made_up is not known"),
        ("stage.evaluate.corruption_set=[fog]", "ood=official18 needs"),
        ("stage.evaluate.severities=[]", "must not be empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(override, words):
    with pytest.raises(UserError, match=words):
        tiny_config(override)


def test_published_images_are_taken_where_they_are_given():
    assert tiny_config().corruptions_kind == "generated"
    assert tiny_config("dataset.corrupted_root=/x").corruptions_kind == "published"
    assert (
        tiny_config("dataset.corrupted_root=/x", "stage.evaluate.corruptions=generated").corruptions_kind
        == "generated"
    )


def test_selections_are_the_papers():
    sizes = {name: len(names) for name, names in SELECTIONS.items()}
    assert sizes == {"paper15": 15, "official18": 18, "all19": 19}
    assert set(ALL) - set(SELECTIONS["official18"]) == {"glass_blur"}
