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


def test_each_mutant_is_killed_by_the_expected_test_or_by_another_or_survives(
    tmp_path, monkeypatch, capsys
):
    test = "import vlpt\n\nclass {}:\n    def test(self):\n        assert vlpt.{} == 1\n"
    files = {
        "vlpt.py": "total = 1\nother = 1\nunused = 1\n",
        "test_vlpt.py": test.format("TestStep6", "total"),
        "tests/test_words.py": test.format("TestWords", "other"),
        "tests/test_export.py": "",
        "conftest.py": "",
        "pyproject.toml": (mutants.ROOT / "pyproject.toml").read_text(),
    }
    (tmp_path / "tests").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # importing Hypothesis takes longest
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    names = ("total", "other", "unused")
    rows = [(name, "TestStep6", f"{name} = 1", f"{name} = 2") for name in names]
    monkeypatch.setattr(mutants, "MUTANTS", rows)
    with pytest.raises(SystemExit, match="1 of 3 mutants survived"):
        mutants.main()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [
        "total killed by test_vlpt.py::TestStep6::test",
        "other killed by tests/test_words.py::TestWords::test and not by TestStep6",
        "unused SURVIVED",
    ]
