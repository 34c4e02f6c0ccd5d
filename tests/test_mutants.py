"""The table of mutants must fit vlpt.py as it is; `make mutants` runs it."""

import pytest

from tests import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant[0])
def test_the_text_of_a_mutant_is_in_vlpt_exactly_once(mutant):
    _, _, old, new = mutant
    source = (mutants.ROOT / "vlpt.py").read_text()
    assert source.count(old) == 1 and old != new
    compile(source.replace(old, new), "vlpt.py", "exec")  # breaks a value, not the syntax


def test_there_are_many_and_each_names_tests_that_exist():
    assert len(mutants.MUTANTS) >= 96
    classes = (mutants.ROOT / "test_vlpt.py").read_text()
    for _, expected, _, _ in mutants.MUTANTS:
        assert expected in mutants.TESTS or f"class {expected}" in classes


def test_a_broken_module_is_noticed_and_a_sound_one_is_not(monkeypatch):
    sound = ("sound", "TestStep6", "class Output", "class Output")
    broken = (
        "broken",
        "TestStep6",
        "total / (targets != IGNORE_INDEX).sum().clamp(min=1)",
        "total",
    )
    selections = []

    def only_step_6(folder, *selection):
        selections.append(selection)
        return first_failure(folder, "test_vlpt.py", "-k", "TestStep6 and (ln_V or derivative)")

    first_failure = mutants.first_failure
    monkeypatch.setattr(mutants, "first_failure", only_step_6)
    killer = "test_vlpt.py::TestStep6CharLoss::test_is_ln_V_for_constant_logits"
    assert mutants.find_killer(broken) == killer
    assert mutants.find_killer(sound) is None
    by_step = ("test_vlpt.py", "-k", "TestStep6")
    assert selections == [by_step, by_step, mutants.TESTS]
