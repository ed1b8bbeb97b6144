"""`ShellFunction` and `MPIFunction`: what they accept, and what a call does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flux_endpoint.functions import MPIFunction, ShellFunction, ShellResult

KINDS = pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])


class TestConstruction:
    """Every option is checked where it is given."""

    @KINDS
    def test_the_defaults(self, kind):
        function = kind("date")
        assert vars(function) == {
            "cmd": "date",
            "stdout": None,
            "stderr": None,
            "walltime": None,
            "snippet_lines": 1000,
            "__name__": kind.__name__,
            "return_dict": False,
        }

    def test_options_in_the_official_order(self):
        function = ShellFunction("date", "o", "e", 1.5, 3, "now", True)
        assert (function.stdout, function.stderr, function.walltime) == ("o", "e", 1.5)
        assert (function.snippet_lines, function.__name__, function.return_dict) == (3, "now", True)

    @KINDS
    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("wall_time", "did you mean 'walltime'"),
            ("env", "it takes cmd, stdout, stderr, walltime, snippet_lines, name, return_dict$"),
            ("resource_specification", "to the Executor, or set executor.resource_specification"),
            ("resource_spec", "pass it to the Executor, or set executor.resource_specification"),
        ],
    )
    def test_an_unknown_option_is_refused_with_the_right_one(self, kind, name, hint):
        said = f"^{kind.__name__} takes no argument '{name}': .*{hint}"
        with pytest.raises(TypeError, match=said):
            kind("date", **{name: 1})

    def test_a_subclass_is_called_by_its_own_name(self):
        class Lammps(ShellFunction):
            pass

        assert Lammps("lmp").__name__ == "Lammps"

    def test_paths_may_be_path_objects(self):
        assert ShellFunction("date", stdout=Path("a/b")).stdout == "a/b"

    @pytest.mark.parametrize("walltime", [None, 0, 1, 0.5, math.inf])
    def test_a_walltime_is_seconds_or_none(self, walltime):
        assert ShellFunction("date", walltime=walltime).walltime == walltime

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"cmd": None}, "cmd must be a string, got None of type NoneType"),
            ({"cmd": ["date"]}, "cmd must be a string"),
            ({"cmd": b"date"}, "cmd must be a string"),
            ({"cmd": "a\0b"}, "null character"),
            ({"walltime": -1}, "walltime must not be negative, got -1"),
            ({"walltime": -0.1}, "walltime must not be negative"),
            ({"walltime": math.nan}, "walltime must be a number"),
            ({"walltime": "10"}, "walltime must be a number of seconds, got '10' of type str"),
            ({"walltime": True}, "walltime must be a number"),
            ({"snippet_lines": -1}, "snippet_lines must be an integer, 0 or more, got -1"),
            ({"snippet_lines": 1.5}, "snippet_lines must be an integer"),
            ({"snippet_lines": None}, "snippet_lines must be an integer"),
            ({"snippet_lines": True}, "snippet_lines must be an integer"),
            ({"name": ""}, "name must be a valid Python name"),
            ({"name": "two words"}, "name must be a valid Python name"),
            ({"name": "1st"}, "name must be a valid Python name"),
            ({"name": "class"}, "and no keyword, got 'class'"),
            ({"name": 5}, "name must be a valid Python name"),
            ({"stdout": 1}, "stdout must be the path of a file, got 1 of type int"),
            ({"stderr": b"x"}, "stderr must be the path of a file"),
            ({"stderr": "a\0"}, "stderr must be the path of a file"),
            ({"return_dict": "yes"}, "return_dict must be True or False"),
        ],
    )
    def test_a_wrong_option_is_refused_by_its_name(self, options, why):
        with pytest.raises(ValueError, match=why):
            ShellFunction(**{"cmd": "date", **options})

    def test_repr_shows_options_that_differ_from_the_defaults(self):
        assert repr(ShellFunction("date")) == "ShellFunction(snippet_lines=1000, cmd='date')"
        text = repr(MPIFunction("app", walltime=5, name="app", stdout="o"))
        assert text == (
            "MPIFunction(name='app', walltime=5, stdout='o', snippet_lines=1000, cmd='app')"
        )
        assert vars(eval(text)) == vars(MPIFunction("app", walltime=5, name="app", stdout="o"))

    def test_str_has_the_options_and_the_command_in_lines(self):
        assert str(ShellFunction(" date ", name="now")) == (
            "now\n     lines: 1000\n   command: date"
        )
        text = str(ShellFunction("a\nb", walltime=1.5, stdout="/o", stderr="e"))
        assert text.splitlines() == [
            "ShellFunction",
            " wall time: 1.5",
            "    stdout: '/o'",
            "    stderr: 'e'",
            "     lines: 1000",
            "   command: -----",
            "            a",
            "            b",
            "            -----",
        ]
        long = str(ShellFunction("".join(f"line {i}\n" for i in range(11))))
        assert "line 9\n" in long
        assert "line 10" not in long
        assert "[... truncated; see .cmd for full script ...]" in long


class Remote:
    """A value that is only what it is where the command runs."""

    def __format__(self, spec):
        pytest.fail("looked into")

    __str__ = __repr__ = __getattr__ = __format__


class TestCheck:
    """A call is looked at before it is sent anywhere."""

    @KINDS
    @pytest.mark.parametrize(
        ("command", "arguments", "error"),
        [
            (
                "awk '{print $1}' {f}",
                {"f": "data"},
                r"field \{print \$1\}.* \(it has: f\).*\{\{ \}\}",
            ),
            ("echo ${HOME}", {}, r"field \{HOME\}.* \(it has: none\).*\{\{ \}\}"),
            ("find . -exec echo {} \\;", {}, r"field without a name .*\{\{ \}\}"),
            ("echo {1..3}", {}, r"field without a name .*\{\{ \}\}"),
            ("echo {", {}, r"can't be formatted: .*\{\{ \}\}"),
            ("echo {width}", {"height": 1, "x": 2}, r"field \{width\} .*\(it has: height, x\)"),
            ("echo {n:03d}", {"n": "7"}, "can't be formatted: ValueError"),
            ("echo {x}", {"x": "a\0b"}, "null character"),
        ],
    )
    def test_check_finds_a_call_that_would_fail(self, kind, command, arguments, error):
        with pytest.raises((TypeError, ValueError), match=error):
            kind(command).check_call((), arguments)

    @pytest.mark.parametrize(
        "command",
        ["echo {x}", "echo {x!r:>9}", "echo {x.name[0]}", "echo {x:{y}}", "echo {{}} ${{HOME}}"],
    )
    def test_check_ignores_values_that_only_the_endpoint_knows(self, command):
        ShellFunction(command).check_call((), {"x": Remote(), "y": Remote()})

    @KINDS
    def test_positional_arguments_are_found(self, kind):
        with pytest.raises(TypeError, match=r"keyword arguments only, .*; got 1 positional"):
            kind("echo {x}").check_call((1,), {})

    def test_a_subclass_with_a_call_of_its_own_may_take_what_it_likes(self):
        class Positional(ShellFunction):
            def __call__(self, x):
                return super().__call__(x=x)

        Positional("echo {x}").check_call((1,), {})

    def test_a_subclass_that_formats_its_command_may_have_any_braces(self):
        class Percent(ShellFunction):
            def format_command(self, arguments):
                return self.cmd % arguments

        Percent("awk '{print %(n)s}'").check_call((), {"n": 1})


class TestCall:
    """A call formats the command and runs it here."""

    def test_fields_are_keyword_arguments_and_what_has_no_field_is_ignored(self):
        result = ShellFunction("echo '{what:>3}{{}}'")(what=42, other=1)
        assert (result.stdout, result.stderr, result.returncode) == (" 42{}\n", "", 0)
        assert result.cmd == "echo ' 42{}'"
        assert result.exception_name is None

    def test_an_argument_may_be_called_self(self):
        assert ShellFunction("echo {self}")(self="me").stdout == "me\n"

    def test_a_missing_argument_is_named(self):
        with pytest.raises(TypeError, match=r"area: .*field \{width\} .*\(it has: height, x\)"):
            ShellFunction("echo {width}", name="area")(height=1, x=2)

    @pytest.mark.parametrize("command", ["echo {}", "echo {0}"])
    def test_a_field_without_a_name_is_explained(self, command):
        with pytest.raises(TypeError, match="field without a name"):
            ShellFunction(command)()

    def test_single_braces_of_another_language_are_explained(self):
        with pytest.raises(TypeError, match=r"field \{print \$1\}.*written \{\{ \}\}"):
            ShellFunction("awk '{print $1}'")()

    @pytest.mark.parametrize("command", ["echo {", "echo }", "echo {x:%%}", "echo {x.nothing}"])
    def test_a_command_that_cannot_be_formatted_is_explained(self, command):
        with pytest.raises(ValueError, match=r"can't be formatted: .*literal braces"):
            ShellFunction(command)(x=1)

    def test_an_argument_with_a_null_character_is_refused(self):
        with pytest.raises(ValueError, match="null character"):
            ShellFunction("echo {x}")(x="a\0b")

    @KINDS
    def test_positional_arguments_are_refused(self, kind):
        with pytest.raises(TypeError, match=r"keyword arguments only, .*; got 2 positional"):
            kind("echo {x}")(1, 2)

    def test_return_dict_returns_a_dictionary_that_json_can_encode(self):
        result = ShellFunction("echo a; echo b >&2; exit 2", return_dict=True)()
        assert json.loads(json.dumps(result)) == {
            "cmd": "echo a; echo b >&2; exit 2",
            "stdout": "a\n",
            "stderr": "b\n",
            "returncode": 2,
            "exception_name": "subprocess.CalledProcessError",
        }

    def test_an_mpi_function_puts_the_launcher_before_the_command(self, monkeypatch):
        monkeypatch.setenv("PARSL_MPI_PREFIX", "echo launch -n 2")
        result = MPIFunction("app {x}")(x=1)
        assert result.cmd == "$PARSL_MPI_PREFIX app 1"
        assert result.stdout == "launch -n 2 app 1\n"

    def test_format_command_returns_the_command_without_a_launcher(self):
        assert MPIFunction("app {x}").format_command({"x": 1}) == "app 1"

    def test_bash_runs_it(self):
        assert ShellFunction('[[ -n $BASH_VERSION ]] && echo "${{#}}"')().stdout == "0\n"


class TestResult:
    """A result reads well."""

    def test_success_shows_the_output(self):
        assert str(ShellResult("x", "a\nb\n", "", 0)) == "exit code: 0\n   stdout:\na\nb"

    def test_failure_shows_both_streams_and_the_reason(self):
        text = str(ShellResult("x", "", "boom\n", 3, "subprocess.CalledProcessError"))
        assert text == (
            "exit code: 3\n   stdout:\n\n\n   stderr:\nboom\n\n"
            "exception: subprocess.CalledProcessError"
        )

    def test_long_output_is_cut_to_its_end_and_says_so(self):
        text = str(ShellResult("x", "".join(f"line {i}\n" for i in range(100)), "", 0))
        assert "[... truncated; see .stdout for full output ...]" in text
        assert "line 89\n" not in text
        assert text.endswith("line 90\n" + "\n".join(f"line {i}" for i in range(91, 100)))
        assert len(str(ShellResult("x", "y" * 10_000, "", 0))) < 1200

    def test_repr_has_all_attributes(self):
        text = repr(ShellResult("c", "o", "e", 1, "n"))
        assert text == (
            "ShellResult(returncode=1, cmd='c', exception_name='n', stdout='o', stderr='e')"
        )
        rebuilt = eval(text, {"ShellResult": ShellResult})
        assert vars(rebuilt) == {
            "cmd": "c",
            "stdout": "o",
            "stderr": "e",
            "returncode": 1,
            "exception_name": "n",
        }
