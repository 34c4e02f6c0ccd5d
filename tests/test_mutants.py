"""The table of mutants must fit vlpt.py as it is; `make mutants` runs it."""

import pytest

from tests import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant[0])
def test_each_mutant_s_text_is_in_vlpt_exactly_once(mutant):
    _, _, old, new = mutant
    source = (mutants.ROOT / "vlpt.py").read_text()
    assert source.count(old) == 1 and old != new
    compile(source.replace(old, new), "vlpt.py", "exec")  # breaks a value, not the syntax


def test_there_are_many_and_each_names_the_class_that_should_notice():
    assert len(mutants.MUTANTS) >= 30
    tests = (mutants.ROOT / "test_vlpt.py").read_text()
    assert all(f"class {mutant[1]}" in tests for mutant in mutants.MUTANTS)


def test_a_broken_module_is_noticed_and_a_sound_one_is_not(monkeypatch):
    sound = ("sound", "TestStep6", "class Output", "class Output")
    broken = ("broken", "TestStep6", " / (wanted != IGNORE).sum().clamp(min=1)", "")
    selections = []

    def only_step_6(folder, *selection):
        selections.append(selection)
        return pytest_fails(folder, "-k", "TestStep6 and (ln_V or derivative)")

    pytest_fails = mutants.pytest_fails
    monkeypatch.setattr(mutants, "pytest_fails", only_step_6)
    assert mutants.killer(broken) == "TestStep6CharLoss::test_is_ln_V_for_constant_logits"
    assert mutants.killer(sound) is None
    assert selections == [("-k", "TestStep6"), ("-k", "TestStep6"), ()]
