"""Builds the documentation as a site: README and ``docs/`` by task, and the public names from their docstrings.

``python -m tools.site [DIR]`` writes it to ``DIR`` (``site`` if left out); any browser opens it without a
network; its search alone wants a server (``python -m http.server``). A link that leads nowhere is an error.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import swcheck
from tools.outputs import ROOT

PAGES: Final[dict[str, dict[str, str]]] = {
    "Begin": {"Front page": "README.md", "Tutorial": "docs/tutorial.md"},
    "How to": {
        "A gate in CI": "docs/ci.md",
        "Your own suite": "docs/own-suite.md",
        "Baselines and the cache": "docs/baselines.md",
        "While a model trains": "docs/training.md",
        "Quantizers and engines": "docs/engines.md",
        "Candidates in their own runtime": "docs/runtimes.md",
        "Models larger than memory": "docs/large-models.md",
        "Change swcheck": "CONTRIBUTING.md",
    },
    "Why": {
        "What super weights are": "docs/super-weights.md",
        "Reading a failure": "docs/reading-a-failure.md",
        "Where limits come from": "docs/limits.md",
        "The paper, measured": "docs/paper.md",
        "Reliability": "docs/reliability.md",
        "How it is built": "ARCHITECTURE.md",
    },
    "Reference": {
        "Options": "docs/options.md",
        "The swcheck command": "docs/command-line.md",
        "Causes": "docs/causes.md",
        "Model families": "docs/families.md",
        "Verdicts against labels": "docs/matrix.md",
        "What large models cost": "docs/performance.md",
        "Python": "python.md",
        "The JSON of a run": "schema.md",
        "Security": "SECURITY.md",
        "Words": "docs/glossary.md",
    },
}
"""Every page of the site by its part: the title, and the file that it is made of."""

MADE: Final = ("python.md", "schema.md")
"""The pages that are made from docstrings and from the JSON Schema, and lie in no file."""

SCHEMA: Final = "swcheck/run/reports/verdicts.schema.json"
BESIDE: Final = (
    SCHEMA,
    "swcheck/loading/tiny/checkpoint/README.md",
    "plugins/README.md",
    "LICENSE",
)
"""Files that pages link to, copied as they are."""


def python_page() -> str:
    """Return a page with every public name: its signature and its docstring."""
    lines = ["# Python", "", "Every name of `swcheck`; each is imported on first use.", ""]
    for name in swcheck.__all__:
        thing = getattr(swcheck, name)
        lines += [
            f"## `{name}`",
            "",
            "```python",
            f"{name}{signature(thing)}",
            "```",
            "",
            inspect.getdoc(thing) or "",
            "",
        ]
        for method, part in vars(thing).items() if inspect.isclass(thing) else ():
            if not method.startswith("_") and inspect.isfunction(part):
                lines += [f"**`{method}{signature(part)}`** {inspect.getdoc(part) or ''}", ""]
    return re.sub("``(.+?)``", r"`\1`", "\n".join(lines))


def schema_page() -> str:
    """Return a page with every field of the JSON of a run, as the JSON Schema describes it."""
    schema = json.loads((ROOT / SCHEMA).read_text(encoding="utf-8"))
    head = ["| field | type | what it is |", "| --- | --- | --- |"]
    lines = ["# The JSON of a run", "", schema["description"], "", f"The [schema itself]({SCHEMA}).", "", *head]
    lines += _schema_rows(schema["properties"])
    lines += ["", "## A verdict", "", *head, *_schema_rows(schema["$defs"]["verdict"]["properties"]), ""]
    return "\n".join(lines)


def _schema_rows(properties: dict[str, Any]) -> list[str]:
    return [
        f"| `{name}` | {_type_words(field)} | {field.get('description', '')} |" for name, field in properties.items()
    ]


def _type_words(field: dict[str, Any]) -> str:
    """Return the type of a field of the schema in words."""
    if "anyOf" in field:
        return " or ".join(_type_words(one) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    names = field["type"] if isinstance(field["type"], list) else [field["type"]]
    return " or ".join(names)


def signature(thing: Any) -> str:
    """Return the signature of a callable as text; empty where it has none."""
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""


def sources() -> dict[str, str]:
    """Return the text of each file of the site by its path, which is that in the repository; README is the index."""
    texts = {"python.md": python_page(), "schema.md": schema_page()}
    for part in PAGES.values():
        texts |= {file: (ROOT / file).read_text(encoding="utf-8") for file in part.values() if file not in MADE}
    texts |= {file: (ROOT / file).read_text(encoding="utf-8") for file in BESIDE}
    return {("index.md" if file == "README.md" else file): text for file, text in texts.items()}


def configuration() -> dict[str, Any]:
    """Return the settings of mkdocs: nothing is fetched from elsewhere, light and dark follow the reader's system."""
    nav = [
        {part: [{title: "index.md" if file == "README.md" else file} for title, file in pages.items()]}
        for part, pages in PAGES.items()
    ]
    schemes = (("light", "default"), ("dark", "slate"))
    palette = [{"media": f"(prefers-color-scheme: {look})", "scheme": scheme} for look, scheme in schemes]
    return {
        "site_name": "swcheck",
        "docs_dir": "pages",
        "use_directory_urls": False,
        "nav": nav,
        "theme": {
            "name": "material",
            "font": False,
            "palette": palette,
            "features": ["navigation.sections", "content.code.copy"],
        },
        "plugins": ["search"],
        "markdown_extensions": ["tables", "admonition", "pymdownx.superfences", {"toc": {"permalink": True}}],
        "validation": {"nav": {"omitted_files": "info"}, "links": {"anchors": "warn"}},
    }


def build(out: Path) -> None:
    """Write the site to ``out``, which is replaced. Raises ``CalledProcessError`` where mkdocs finds a fault."""
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        for name, text in sources().items():
            page = Path(folder) / "pages" / name
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
        settings = Path(folder) / "mkdocs.yml"
        settings.write_text(yaml.safe_dump(configuration(), sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(settings), "-d", f"{folder}/site"]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        subprocess.run(command, check=True, env=environment)  # noqa: S603 - Python itself, and arguments as one list
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(f"{folder}/site", out)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")
