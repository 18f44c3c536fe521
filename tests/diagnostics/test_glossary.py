"""The texts of the glossary, and how a command prints them."""

import json
import re

import pytest
from commands import ROOT

from experiments.kit import flags
from preqn_jax.diagnostics import GLOSSARY


@pytest.mark.parametrize("name", GLOSSARY)
def test_remedies_are_in_the_words_of_the_library_and_a_binary_has_flags_for_them(name):
    remedy = GLOSSARY[name].remedy
    assert remedy and "--" not in remedy
    arguments = re.findall(r"\(.*?\)", remedy)
    assert set(arguments) <= set(flags.FLAGS_OF_ARGUMENTS)
    translated = re.findall(r"\(.*?\)", flags.in_flags(remedy))
    assert len(translated) == len(arguments) and all(flag[1:3] == "--" for flag in translated)


def test_every_flag_of_the_table_is_needed():
    remedies = " ".join(entry.remedy for entry in GLOSSARY.values())
    assert all(argument in remedies for argument in flags.FLAGS_OF_ARGUMENTS)


def test_the_output_kept_in_the_notebook_is_in_the_words_of_today():
    notebook = json.loads((ROOT / "experiments/notebooks/diagnose_sbx.ipynb").read_text())
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", ())]
    lines = "".join("".join(out.get("text", ())) for out in outputs).splitlines()
    shown = {line.split()[0]: line for line in lines if line.split()[:1] and "  " in line}
    rows = {name: shown[name] for name in GLOSSARY if name in shown}
    assert len(rows) > 20
    assert all(row.endswith(f"  {GLOSSARY[name].high}") for name, row in rows.items())
    remedies = [line.split("remedy: ")[1] for line in lines if "remedy: " in line]
    assert remedies and {*remedies} <= {entry.remedy for entry in GLOSSARY.values()}
