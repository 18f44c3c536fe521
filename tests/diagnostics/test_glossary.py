"""The texts of the glossary, and how a command prints them."""

import re

import pytest

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
