"""What a release says about itself: version, date and citation are the same everywhere."""

import re
from pathlib import Path

import yaml

from fastreid_rib.base import __version__

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_changes_are_dated_grouped_and_end_in_the_version_of_the_package():
    found = re.findall(r"^## (\S+)(?: - (\d{4}-\d\d-\d\d))?$", CHANGELOG, re.M)
    assert len(found) == len(re.findall(r"^## .*$", CHANGELOG, re.M))
    (unreleased, no_date), *dated = found
    assert (unreleased, no_date) == ("Unreleased", "")
    versions, dates = zip(*dated)
    assert versions[0] == __version__ and len(versions) > 1
    assert all(dates) and list(dates) == sorted(dates, reverse=True)
    order = ["### Added", "### Changed", "### Removed", "### Fixed"]
    for section in re.split(r"^## ", CHANGELOG, flags=re.M)[1:]:
        heading, first, *_ = filter(None, section.splitlines())
        groups = re.findall(r"^#.*$", section, re.M)
        assert groups == [group for group in order if group in groups] and first in groups, heading


def test_the_citation_is_of_this_version_and_whole():
    assert CITATION["version"] == __version__
    assert f"## {__version__} - {CITATION['date-released']}" in CHANGELOG
    assert CITATION["license"] == "Apache-2.0"
    # What its schema requires, as text: yaml makes numbers and dates.
    texts = ("cff-version", "message", "title", "abstract", "version", "date-released")
    assert all(isinstance(CITATION[key], str) for key in texts)
    assert CITATION["authors"] and CITATION["cff-version"] == "1.2.0"


def test_the_paper_is_cited_as_in_the_readme():
    paper = CITATION["preferred-citation"]
    authors = [f"{who['family-names']}, {who['given-names']}" for who in paper["authors"]]
    text = (ROOT / "README.md").read_text("utf-8")
    entry = re.search(r"^```bibtex\n(.*?)^```$", text, re.M | re.S).group(1)
    assert dict(re.findall(r"(\w+)=\{(.*)\}", entry)) == {
        "title": paper["title"],
        "author": " and ".join(authors),
        "journal": paper["journal"],
        "year": str(paper["year"]),
    }
