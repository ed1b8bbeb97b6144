"""Values in the fields of a command line: as they are, with `!q`, and where all are quoted."""

from __future__ import annotations

import shlex
import string
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flux_endpoint.functions import ShellFunction
from flux_endpoint.functions.fields import LONGEST, WIDEST, format_fields, quoting_fields
from flux_endpoint.functions.plain import _BUILTINS

#: What a shell would make of it, if it were not data.
NASTY = ["x; id", "$(id)", "`id`", "a b", "*", "'; id; echo '", '"; id; "', "~", "é\\", "a\nb", ""]


def printed(command: str) -> list[str]:
    """Return the words that a command gives to `printf`, here a program that shows them."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


class TestQuoted:
    """`{x!q}` is one word."""

    @pytest.mark.parametrize("value", NASTY)
    def test_a_value_arrives_as_it_is(self, value):
        assert printed(ShellFunction(r"printf '%s\0' {x!q}").format_command({"x": value})) == [
            value
        ]

    def test_quoted_values_are_converted_to_text(self):
        assert (
            format_fields("{x!q} {y!q:>6}", {"x": [1, "a"], "y": 3})
            == "'[1, '\"'\"'a'\"'\"']'      3"
        )

    def test_the_client_checks_a_call_with_it(self):
        function = ShellFunction("echo {x!q}")
        function.check_call((), {"x": object()})
        with pytest.raises(TypeError, match="no such keyword argument"):
            function.check_call((), {})


@given(st.text(), st.integers(), st.floats(allow_nan=False))
@example("a", 1, 1.5)
def test_other_conversions_work_as_in_str_format(text, whole, real):
    template = "{{a}} {t} {t!r:>20} {t!s} {w:+d} {w:>{n}} {r:.3e} {s[0]} a:b"
    values = {"t": text, "w": whole, "r": real, "n": 9, "s": [text]}
    assert format_fields(template, values) == template.format(**values)


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("echo {x:>800000000}", {"x": 1}),
        ("echo {x:.800000000f}", {"x": 1.5}),
        ("echo {x:{w}}", {"x": 1, "w": WIDEST + 1}),
        ("echo {x:{w}}", {"x": 1, "w": 10**400}),
        ("{x}" * 100, {"x": "a" * (LONGEST // 99)}),
    ],
)
def test_a_format_does_not_fill_the_memory(template, values):
    with pytest.raises(ValueError, match=r"can't be formatted: .*(at most|longer than)"):
        ShellFunction(template).format_command(values)


class TestQuoting:
    """Where an endpoint allows chosen functions only, a value is data wherever it stands."""

    @pytest.mark.parametrize("value", [*NASTY, "plain", "/data/a-b_c.txt", "a=b,c:d"])
    @pytest.mark.parametrize(
        "template",
        [
            "{x}",
            '"{x}"',
            "'{x}'",
            "{x!q}",
            '"{x!q}"',
            "''{x}",
            '"a"\'b\'"{x}"',
            "\\''{x}'",
            '"\\"{x}\\""',
            "a#'{x}'",
            "\\\n'{x}'",
            "n{x}",
        ],
    )
    def test_a_value_arrives_as_it_is(self, template, value):
        with quoting_fields():
            command = format_fields(
                f"printf '%s\\0' {template} # it's {{n}}", {"x": value, "n": "a"}
            )
        around = {
            '"a"\'b\'"{x}"': "ab{}",
            "\\''{x}'": "'{}",
            '"\\"{x}\\""': '"{}"',
            "a#'{x}'": "a#{}",
            "n{x}": "n{}",
        }
        assert printed(command) == [around.get(template, "{}").format(value)]

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("cat <<end\n{x}\nend", "a here-document"),
            ("echo $(basename {x})", "'$('"),
            ("echo `basename {x}`", "a '`'"),
            ('echo "`basename {x}`"', "a '`'"),
            ('echo "${{y:-{x}}}"', "'${'"),
            ("echo $'{x}'", "'$''"),
            ("echo ${x}", "a '$' right before a field"),
            ("A=1; echo $A{x}", "a '$' right before a field"),
            ("[[ {x} -eq 1 ]]", "'[['"),
            ("(( {x} > 1 ))", "'(('"),
            ("echo $[{x}+1]", "'$['"),
            ("cat <(echo {x})", "'<('"),
            ("echo a >&{x}", "'>&' right before a field"),
            ("echo \\{x}", "a '\\' right before a field"),
            ("echo ~{x}", "a '~' right before a field"),
            ("echo a[{x}]", "a '[' in a word"),
            ("echo {{{x},b}}", "a '{' in a word"),
            ("t=(1 2); t[{x}]=5", "'(' inside"),
            ("t[{x}]=5", "a '[' in a word"),
            ("f() {{ echo {x}; }}; f", "'(' inside"),
            ("for i in {x}; do $i; done", "'for'"),
            ("case {x} in a) id;; esac", "'case'"),
            ("echo 'a {x}", "a ' that is not closed"),
            ("time -p {x}", "'-p' for a program"),
            ("eval echo {x}", "the builtin 'eval'"),
            ("'eval' echo {x}", "the builtin 'eval'"),
            ("\\eval echo {x}", "the builtin 'eval'"),
            ("read -r {x}", "the builtin 'read'"),
            ("export A={x}", "the builtin 'export'"),
            ("let n={x}", "the builtin 'let'"),
            (". {x}", "the builtin '.'"),
            ("PS4={x}; set -x; true", "it is the value of a variable"),
            ("PATH={x} ls", "it is the value of a variable"),
            ('bash -c "echo {x}"', "bash is not known to take"),
            ("python3 -c 'print({x})'", "python3 is not known to take"),
            ("awk '{{print {x}}}'", "awk is not known to take"),
            ("[ -v 'a[{x}]' ]", "[ is not known to take"),
        ],
    )
    def test_fields_in_unparsed_contexts_accept_only_numbers(self, template, reason):
        with quoting_fields():
            for value in (7, -1.5, "1e-3", ".5", "+2"):
                assert str(value) in format_fields(template, {"x": value})
            for value in (*NASTY, "a", "a/b.txt", "2026-11-27", "1;id", "1\n", "٣", "0x1f", True):
                with pytest.raises(
                    ValueError, match=r"of \{x\} must be a number here: "
                ) as refused:
                    format_fields(template, {"x": value})
                assert reason in str(refused.value)

    @pytest.mark.parametrize(
        ("template", "program"),
        [
            ("./app --in {x}", "./app"),
            ("./app --in={x} 2>&1 | tee log", "./app"),
            ("./app out_{x}.dat", "./app"),
            ("$HOME/bin/app '{x}'", "$HOME/bin/app"),
            ("echo {x} | sh", "sh"),
            ("cd d && timeout 5 cat {x}", "timeout"),
            ("find . -name {x}", "find"),
            ("sort --compress-program={x}", "sort --compress-program"),
            ("sort --compress-program sh {x}", "sort --compress-program"),
            ("printf -v {x} 1", "printf -v"),
            ("if [ -f d/{x} ]; then cat d/{x}; fi", "["),
            ("set {x}; cat a", "set"),
        ],
    )
    def test_an_unknown_program_accepts_only_plain_words(self, template, program):
        with quoting_fields():
            for value in ("7", "a/b.txt", "2026-11-27", "ada@example.org", "a,b", True):
                assert str(value) in format_fields(template, {"x": value})
            for value in filter(None, [*NASTY, "a=b", "é", "a[0]", {"a": 1}, b"a", ["a b"]]):
                with pytest.raises(ValueError, match="must be a plain word here") as refused:
                    format_fields(template, {"x": value})
                assert f": {program} is not known to take every text" in str(refused.value)
                assert "plain_programs" in str(refused.value)

    def test_lists_of_plain_words_are_taken(self):
        function = ShellFunction("./app {x}")
        with quoting_fields():
            assert function.format_command({"x": [1, 2.5, "a.txt", None]}) == (
                "./app '[1, 2.5, '\"'\"'a.txt'\"'\"', None]'"
            )
            numbers = ShellFunction("python3 -c 'print(sum({x}))'").format_command({"x": [1, 2]})
            assert subprocess.check_output(["bash", "-c", numbers]) == b"3\n"

    def test_a_program_named_by_the_owner_accepts_any_text(self):
        for value in NASTY:
            with quoting_fields(["printf '%s'", "command_not_known", "./app"]):
                command = format_fields("./app {x} | cat", {"x": value})
            assert shlex.split(command) == ["./app", value, "|", "cat"]
        with quoting_fields(["./app"]), pytest.raises(ValueError, match="app is not known"):
            format_fields("app {x}", {"x": "a b"})

    @pytest.mark.parametrize("template", ["{x}", "cat a; '{x}' b", "A=1 ./{x}.sh", "a && {x}"])
    def test_no_value_names_a_program(self, template):
        for value in ("id", "7", "", "A=1"):
            with quoting_fields(["id"]), pytest.raises(ValueError, match="would name the program"):
                format_fields(template, {"x": value})

    def test_common_shell_syntax_is_parsed(self):
        template = (
            "set -euo pipefail\n"
            "# the input\n"
            "mkdir -p {d} && cd {d} || exit 1\n"
            "(cat -- {f}; echo \"$USER: {t}\") 2>&1 | sort -n >>'log of {d}' &\n"
            "if true; then {{ wc -l < {f}; }} fi; ! cat <<< {t}\n"
            "wait\n"
        )
        values = {"d": "my dir", "f": "a;b", "t": "$(id)"}
        with quoting_fields():
            command = format_fields(template, values)
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
        words = shlex.split(command, comments=True)
        for value in values.values():
            assert any(value in word for word in words)

    def test_a_number_names_no_descriptor(self, tmp_path):
        with quoting_fields():
            command = format_fields("cd {d}; echo {x}>f", {"d": tmp_path, "x": 2})
        subprocess.run(["bash", "-c", command], check=True)
        assert (tmp_path / "f").read_text() == "2\n"

    def test_all_builtins_are_known(self):
        """One that a newer bash has would be taken for a program."""
        listed = subprocess.check_output(["bash", "-c", "compgen -b"], text=True).split()
        assert set(listed) <= _BUILTINS

    def test_a_leading_dash_is_refused_where_it_could_be_an_option(self):
        with quoting_fields(["tar", "add"]):
            for template in ("tar cf {x}", "tar cf '{x}'", 'tar -- a; tar cf "{x}"'):
                with pytest.raises(ValueError, match="begins with '-'"):
                    format_fields(template, {"x": "--checkpoint-action=exec=id"})
            for number in ("-1", "-1.5e-3", "-.5"):
                assert format_fields("add {x}", {"x": number}) == f"add {number}"
            assert format_fields("grep -- {x} f", {"x": "-a"}) == "grep -- -a f"
            assert format_fields("run --n={x}", {"x": "-a"}) == "run --n=-a"

    @given(st.text(alphabet=string.printable + "é€", max_size=30))
    @pytest.mark.parametrize("template", ["x{x}", '"x{x}"', "'x{x}'"])
    def test_a_value_stays_one_word(self, template, text):
        with quoting_fields():
            command = format_fields(f"echo {template} b", {"x": text})
        assert shlex.split(command) == ["echo", f"x{text}", "b"]

    def test_quoting_ends_with_its_block(self):
        with quoting_fields():
            pass
        assert format_fields("echo {x}", {"x": "$(id)"}) == "echo $(id)"

    @pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x"])
    def test_output_goes_below_the_directory_of_the_task(self, path):
        for option in ("stdout", "stderr"):
            with (
                quoting_fields(),
                pytest.raises(ValueError, match=f"{option} is .*chosen functions"),
            ):
                ShellFunction("date", **{option: path})()


#: Of these a command line is made: builtins alone, so that nothing is run but what bash is.
_PIECES = [
    "echo ", "cd ", ": ", "printf '%s' ", "set -- ", "{y}", "eval ", "let ", "export ", "exec ",
    "if ", "then ", "a=", "a[", "]", "-- ", "$", "{{", "}}", "(", ")", "`", "'", '"', "\\", "<<E",
    "<<<", "<", "> o", "|", "&", ";", "\n", "# ", " ", "~", "1", "E", "!", ",", "\nE\n", "echo {y}",
]  # fmt: skip
_PLACES = [
    "{x}", " {x}", "echo {x}", "'{x}'", '"{x}"', "eval {x}", "eval '{x}'", "`echo {x}`", "$({x})",
    "$(( {x} ))", "echo $[{x}]", "[[ {x} -eq 1 ]]", "[ -v {x} ]", "a[{x}]=1", "let {x}",
    "printf -v {x} 1", "$'{x}'", "cat <<E\n{x}\nE\n", ": ${{a:-{x}}}", "for i in {x}; do $i; done",
    "trap {x} 0", "f() {{ {x}; }}; f", "unset 'a[{x}]'", "declare -i n={x}", "PS4={x}; set -x; :",
    "a={x}; : $((a))",
]  # fmt: skip
_ATTACKS = [
    "$(echo>ran)", "`echo>ran`", "; echo>ran;", "'; echo>ran; '", '"; echo>ran; "', "\necho>ran\n",
    "a[$(echo>ran)]", "\\", "&&echo>ran", ">ran", "E\necho>ran", "$'\\n'echo>ran", "|tee ran",
    "a[`echo>ran`]", "x=a[$(echo>ran)]", "<(echo>ran)", ")echo>ran;(", "}}; echo>ran; {{",
    "#\necho>ran",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(_PIECES), max_size=3),
    st.sampled_from(_PLACES),
    st.lists(st.sampled_from(_PIECES), max_size=3),
    st.sampled_from(_ATTACKS),
    st.sampled_from([*_ATTACKS, "a", "7", "E", "-v"]),
)
def test_no_value_is_executed_in_any_command(before, place, after, x, y):
    template = "".join([*before, place, *after])
    try:
        with quoting_fields():
            command = format_fields(template, {"x": x, "y": y})
    except (ValueError, KeyError, IndexError):
        return
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=directory,
            env={"PATH": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
        assert not Path(directory, "ran").exists(), command


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("cat {a}{b}", {"a": "", "b": "--version"}),
        ('cat "{a}{b}"', {"a": "", "b": "--version"}),
        ("cat {a:.0}{b}", {"a": "x", "b": "--version"}),
        ("srun -n 1 -- ls {b}", {"b": "-la"}),
        ("a -- {b}; ls {b}", {"b": "-la"}),
        ('echo "a -- b" {b}', {"b": "-n"}),
    ],
)
def test_a_value_that_could_be_taken_for_an_option_is_refused(template, values):
    with quoting_fields(), pytest.raises(ValueError, match="could take it for an option"):
        format_fields(template, values)


def test_values_behind_two_dashes_may_begin_with_one():
    with quoting_fields():
        assert format_fields("ls -- {a} {b}", {"a": "-a", "b": "-b"}) == "ls -- -a -b"


def test_a_value_sets_no_variable_of_the_command_behind_it():
    for template in ("{x} true", "env {x} ./run", "A=1 {x} ./run"):
        with quoting_fields(), pytest.raises(ValueError, match=r"plain word|would name"):
            format_fields(template, {"x": "LD_PRELOAD=./evil.so"})
