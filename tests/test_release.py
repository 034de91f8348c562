"""What a release says about itself: version, date, authors and citation are the same everywhere."""

import re
from pathlib import Path

import yaml

from fastreid_rib.base import __version__

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
VERSION = re.compile(r"^## (\S+)(?: - (\d{4}-\d\d-\d\d))?$", re.M)


def releases():
    """{version: date} as the changelog has them, the newest first."""
    headings = re.findall(r"^## .*$", CHANGELOG, re.M)
    found = VERSION.findall(CHANGELOG)
    assert len(found) == len(headings)
    return dict(found)


def test_releases_are_dated_in_order_and_end_in_the_version_of_the_package():
    (unreleased, no_date), *dated = releases().items()
    assert (unreleased, no_date) == ("Unreleased", "")
    versions, dates = zip(*dated)
    assert versions[0] == __version__ and len(versions) > 1
    assert all(dates) and list(dates) == sorted(dates, reverse=True)
    numbers = [[int(part) for part in version.split(".")] for version in versions]
    assert numbers == sorted(numbers, reverse=True)


def test_changes_are_grouped():
    for section in re.split(r"^## ", CHANGELOG, flags=re.M)[1:]:
        heading, *lines = section.splitlines()
        groups = [line for line in lines if line.startswith("#")]
        order = ["### Added", "### Changed", "### Removed", "### Fixed"]
        assert groups == [group for group in order if group in groups], heading
        before = "\n".join(lines).split("###")[0].strip()
        assert before == "", f"{heading}: a change that stands in no group"


def test_the_citation_is_of_this_version_and_whole():
    assert CITATION["version"] == __version__
    assert CITATION["date-released"] == releases()[__version__]
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
    assert paper["type"] == "article"
    assert dict(re.findall(r"(\w+)=\{(.*)\}", entry)) == {
        "title": paper["title"],
        "author": " and ".join(authors),
        "journal": paper["journal"],
        "year": str(paper["year"]),
    }
    number = re.search(r"arXiv:([\d.]+)", paper["journal"]).group(1)
    assert paper["url"].endswith(number) and paper["identifiers"][0]["value"].endswith(number)
