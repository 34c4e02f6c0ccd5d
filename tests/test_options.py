"""Tests of training/options.py: each mistake on a command line is one line that explains it."""

import argparse

import pytest

from training.options import Parser, folder_name, number, some_path


class TestNumber:
    def test_a_whole_number_stays_one(self):
        assert number(int, 1)("7") == 7
        assert isinstance(number(int, 1)("7"), int)
        assert number(float, 0)("1e-3") == 1e-3

    @pytest.mark.parametrize(
        ("convert", "text", "message"),
        [
            (number(int, 1), "0", "expected a whole number of at least 1, got '0'"),
            (number(int, 1), "2.5", "expected a whole number of at least 1, got '2.5'"),
            (number(float, 0), "nan", "expected a number of at least 0, got 'nan'"),
            (number(float, 0, exclusive=True), "0", "expected a number above 0, got '0'"),
            (number(float, 0, 1), "1", "expected a number of at least 0 and below 1, got '1'"),
        ],
    )
    def test_another_value_is_refused(self, convert, text, message):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            convert(text)
        assert str(error.value) == message


class TestPaths:
    def test_a_folder_in_runs_may_contain_folders(self):
        assert folder_name("a/b") == "a/b"
        assert some_path("x") == "x"

    @pytest.mark.parametrize("text", ["", ".", "..", "../x", "/x", "a/../b", "a\nb"])
    def test_other_places_are_refused(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match="expected the name of a folder"):
            folder_name(text)

    def test_an_empty_path_is_refused(self):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a path, got ''"):
            some_path("")


class TestParser:
    def test_an_error_is_one_line(self, capsys):
        parser = Parser(prog="tool")
        parser.add_argument("--size", type=number(int, 1))
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(["--size", "x"])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error == (
            "tool: error: --size: expected a whole number of at least 1, got 'x'; see --help\n"
        )

    def test_only_the_first_of_several_processes_prints_it(self, monkeypatch, capsys):
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(SystemExit):
            Parser(prog="tool").parse_args(["--none"])
        assert capsys.readouterr().err == ""
