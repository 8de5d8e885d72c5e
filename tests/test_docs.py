"""The documentation says what the code does: options, fields of results, numbers, links, pages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import yaml
from tiny_jobs import script, tiny_config

from rift.job import run_job
from rift.report.experiments import experiment_names, load_experiment

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text("utf-8")


def test_the_page_of_options_is_written_from_the_schema():
    page_script = script("configuration_page")
    page = page_script.page()
    assert page_script.PAGE.read_text("utf-8") == page, "run scripts/configuration_page.py"
    without = re.findall(r"^\| (`[\w.]+`) .*\|\s+\|$", page, re.MULTILINE)
    assert not without, f"options without a word of explanation: {without}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_page_is_in_the_site_and_on_its_first_page():
    listed = (ROOT / "scripts" / "mkdocs.yml").read_text("utf-8")
    nav = set(re.findall(r"[\w-]+\.md", str(yaml.safe_load(listed)["nav"])))
    assert nav == {page.name for page in PAGES}
    first = (ROOT / "docs" / "index.md").read_text("utf-8")
    assert nav - {"index.md"} == set(re.findall(r"\]\(([\w-]+\.md)\)", first))


def test_every_field_of_a_summary_is_on_its_page(tmp_path):
    page = (ROOT / "docs" / "results-format.md").read_text("utf-8")
    named = {name.removesuffix(".safetensors") for name in re.findall(r"`([\w.]+)`", page)}
    summary = run_job(tiny_config(output=tmp_path), {})
    below = [summary[name] for name in ("attack", "at", "rift", "leak", "training", "provenance", "paired")]
    below += [summary["mrc"][0], summary["sweep"][0], summary["intervals"]["clean"]]
    found = set(summary).union(*below)
    assert found - named == set()
    files = {path.stem for path in (tmp_path / "store").glob("*/*/*.safetensors")}
    assert files - named == set()
    for path in (tmp_path / "store").glob("*/*/result.json"):
        assert json.loads(path.read_text())["resumed"] is False  # as the page says: true or false


def table_of_experiments() -> dict[str, list[str]]:
    """Jobs, PFLOP and hours of each, as docs/reproduce.md has them."""
    row = r"^\| `(\w+)` \|.*?\| (\d+) \| ([\d ]+|not counted)(?: PFLOP)? \| ([\d.]*) ?\|$"
    rows = re.findall(row, REPRODUCE, re.MULTILINE)
    return {name: [jobs, petaflop.replace(" ", ""), hours] for name, jobs, petaflop, hours in rows}


def test_an_experiment_has_as_many_jobs_as_the_page_says():
    table = table_of_experiments()
    assert set(table) == set(experiment_names())
    for name, (jobs, *_) in table.items():
        assert prod(len(values) for values in load_experiment(name).axes.values()) == int(jobs), name
    (comment,) = re.findall(r"^rift -m experiment=(\w+) .*# (\d+) jobs", REPRODUCE, re.MULTILINE)
    assert table[comment[0]][0] == comment[1]


@pytest.mark.slow
def test_the_cost_of_the_papers_tables_is_what_the_page_says():
    done = subprocess.run(
        [sys.executable, "scripts/row_cost.py"], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    told = dict(re.findall(r"^\| (\w+) +\| +(\d+) \|", done.stdout, re.MULTILINE))
    counted = {name: row for name, row in table_of_experiments().items() if row[1].isdigit()}
    assert set(told) == set(counted), done.stderr
    for name, (_, petaflop, hours) in counted.items():
        assert float(petaflop) == pytest.approx(float(told[name]), rel=0.02), name
        # At the 100 TFLOP/s that the page assumes.
        assert float(hours) == pytest.approx(float(told[name]) / 360, rel=0.1), name
