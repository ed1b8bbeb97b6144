"""Values in the fields of a command line: as they are, with `!q`, and where all are quoted."""

from __future__ import annotations

import shlex
import string
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flux_endpoint.functions import ShellFunction
from flux_endpoint.functions.fields import LONGEST, WIDEST, format_fields, quoting_fields

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

    def test_other_values_are_text_first(self):
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
def test_other_conversions_are_those_of_format(text, whole, real):
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
            "-n{x}",
        ],
    )
    def test_a_value_arrives_as_it_is(self, template, value):
        with quoting_fields():
            command = format_fields(f"printf '%s\\0' {template} # it's {{n}}", {"x": value, "n": 1})
        around = {
            '"a"\'b\'"{x}"': "ab{}",
            "\\''{x}'": "'{}",
            '"\\"{x}\\""': '"{}"',
            "a#'{x}'": "a#{}",
            "-n{x}": "-n{}",
        }
        assert printed(command) == [around.get(template, "{}").format(value)]

    @pytest.mark.parametrize(
        "template",
        [
            "cat <<end\n{x}\nend",
            "echo $(basename {x})",
            "echo `basename {x}`",
            'echo "${{y:-{x}}}"',
            "echo $'{x}'",
            "[[ {x} -eq 1 ]]",
            "(( {x} > 1 ))",
            "eval echo {x}",
            "bash -c 'echo {x}'",
            "sh -ec 'echo {x}'",
            "python3 -c 'print({x})'",
            "awk '{{print {x}}}'",
            "echo 1 # {x}",
            "echo \\{x}",
            "[ -v {x} ]",
        ],
    )
    def test_a_place_where_quotes_do_not_help_takes_harmless_values_only(self, template):
        with quoting_fields():
            for value in ("7", "a/b.txt", "2026-11-27"):
                assert value in format_fields(template, {"x": value})
            for value in filter(None, NASTY):
                with pytest.raises(ValueError, match=r"\{x\} has characters that a shell could"):
                    format_fields(template, {"x": value})

    def test_no_value_becomes_an_option(self):
        with quoting_fields():
            for template in ("tar cf {x}", "tar cf '{x}'", 'tar -- a; tar cf "{x}"'):
                with pytest.raises(ValueError, match="begins with '-'"):
                    format_fields(template, {"x": "--checkpoint-action=exec=id"})
            for number in ("-1", "-1.5e-3", "-.5"):
                assert format_fields("add {x}", {"x": number}) == f"add {number}"
            assert format_fields("grep -- {x} f", {"x": "-a"}) == "grep -- -a f"
            assert format_fields("run --n={x}", {"x": "-a"}) == "run --n=-a"

    @given(st.text(alphabet=string.printable + "é€", max_size=30))
    @pytest.mark.parametrize("template", ["x{x}", '"x{x}"', "'x{x}'"])
    def test_one_word_stays_one_word(self, template, text):
        with quoting_fields():
            command = format_fields(f"a {template} b", {"x": text})
        assert shlex.split(command) == ["a", f"x{text}", "b"]

    def test_it_ends_with_its_block(self):
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


@pytest.mark.parametrize(
    "template",
    [
        "echo $[{x}+1]",
        "x={x}; echo $[x*2]",
        "t=(1 2); t[{x}]=5",
        "n={x}; t=(1 2 3); t[n]=0",
        "read -r {x}",
        "PS4={x}; set -x; true",
        "compgen -W {x}",
        "bash '-c' {x}",
        'bash "-c" {x}',
        "su --command={x}",
        "hash -p {x} ls",
        "enable -f {x} foo",
        "watch {x}",
        "find . -name {x}",
        "printf -v {x} 1",
    ],
)
def test_what_reads_a_word_again_takes_no_characters_of_a_shell(template, tmp_path):
    value = f"a[$(touch {tmp_path}/ran)]"
    with quoting_fields(), pytest.raises(ValueError, match="a shell could interpret"):
        format_fields(template, {"x": value})


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("cat {a}{b}", {"a": "", "b": "--version"}),
        ('cat "{a}{b}"', {"a": "", "b": "--version"}),
        ("cat {a:.0}{b}", {"a": "x", "b": "--version"}),
        ("srun -n 1 -- ls {b}", {"b": "-la"}),
        ('echo "a -- b" {b}', {"b": "-n"}),
    ],
)
def test_what_is_no_option_by_its_field_can_not_become_one(template, values):
    with quoting_fields(), pytest.raises(ValueError, match="could take it for an option"):
        format_fields(template, values)


def test_values_behind_two_dashes_may_begin_with_one():
    with quoting_fields():
        assert format_fields("ls -- {a} {b}", {"a": "-a", "b": "-b"}) == "ls -- -a -b"


def test_a_value_sets_no_variable_of_the_command_behind_it():
    with quoting_fields():
        assert format_fields("{x} true", {"x": "LD_PRELOAD=./evil.so"}).startswith("'LD_PRELOAD")
        with pytest.raises(ValueError, match="a shell could interpret"):
            format_fields("env {x} ./run", {"x": "LD_PRELOAD=./evil.so"})
