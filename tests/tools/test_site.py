"""The documentation as a site: every page is in it, nothing is fetched from elsewhere, and no link leads nowhere."""

from __future__ import annotations

import json
import posixpath
import re

import pytest

import swcheck
from tools import outputs, site


def test_every_page_of_the_documentation_is_on_the_site():
    """README and each file of docs stand in the navigation once."""
    listed = [file for pages in site.PAGES.values() for file in pages.values()]
    assert len(listed) == len(set(listed))
    assert {page.relative_to(outputs.ROOT).as_posix() for page in outputs.PAGES} <= set(listed)


def test_every_public_name_has_its_docstring_on_the_site():
    """The page of Python names all of them, each with what it says of itself."""
    text = site.python_page()
    for name in swcheck.__all__:
        assert f"## `{name}`\n" in text
    assert "Raises" in text


def test_every_field_of_the_json_is_on_the_site():
    """The page of the schema has a row for each field of a run and of a verdict, with its type and what it is."""
    text, schema = site.schema_page(), json.loads((outputs.ROOT / site.SCHEMA).read_text(encoding="utf-8"))
    verdict = schema["$defs"]["verdict"]
    for name in (*schema["properties"], *verdict["properties"]):
        assert f"| `{name}` | " in text
    assert "| `measured` | number or null | the measured value; null if nothing could be measured |" in text
    assert '| `outcome` | `"passed"`, `"near"`' in text


def test_every_link_of_a_page_leads_to_a_file_of_the_site():
    """Without a build: no relative link of a page in the navigation leads to a file that is not copied."""
    sources = site.sources()
    lost = []
    for page in {"index.md" if file == "README.md" else file for part in site.PAGES.values() for file in part.values()}:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", sources[page], flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
            if ("index.md" if target == "README.md" else target) not in sources:
                lost.append((page, link))
    assert lost == []


@pytest.mark.slow
def test_the_site_is_built_strictly_and_needs_no_network(tmp_path):
    """mkdocs finds no fault, and no page asks another host for anything but the links that a reader may follow."""
    pytest.importorskip("material")
    site.build(tmp_path / "site")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="https?://', text)


@pytest.mark.slow
def test_a_link_that_leads_nowhere_stops_the_build(tmp_path, monkeypatch):
    """The build is red on a page whose link is broken, and writes nothing."""
    pytest.importorskip("material")
    monkeypatch.setattr(site, "sources", lambda: {"index.md": "[gone](docs/gone.md)"})
    monkeypatch.setattr(site, "PAGES", {"Begin": {"Front page": "README.md"}})
    with pytest.raises(site.subprocess.CalledProcessError):
        site.build(tmp_path / "site")
    assert not (tmp_path / "site").exists()
