"""`config.yaml`: its defaults, and what is said of every mistake in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flux_endpoint.endpoint.config import (
    EndpointConfig,
    initial_config,
    load_config,
    parse_config,
)
from flux_endpoint.engine.config import BlocksConfig
from flux_endpoint.errors import ConfigurationError


def complaint(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(text, source="config.yaml")
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "engine:\n", "engine: {type: FluxEngine}\n"])
def test_all_settings_have_defaults(text: str) -> None:
    assert parse_config(text, source="config.yaml") == EndpointConfig()


def test_the_initial_configuration_is_valid_and_has_the_defaults() -> None:
    config = parse_config(initial_config("lab", 'The "Lab": #1'), source="config.yaml")
    assert config == EndpointConfig(display_name='The "Lab": #1')


def test_the_commented_lines_of_a_new_file_name_real_keys_and_real_defaults() -> None:
    text = re.sub(r"(?m)^( *)# ([a-z_]+: )", r"\1\2", initial_config("lab"))
    config = parse_config(text, source="config.yaml")
    defaults = EndpointConfig(display_name="lab")
    same = {"heartbeat_period", "max_in_flight", "prefetch", "shutdown_grace", "log_level"}
    assert all(getattr(config, key) == getattr(defaults, key) for key in same)
    assert config.engine.working_dir == defaults.engine.working_dir
    assert (config.engine.workers_per_node, config.engine.max_workers) == (16, 64)


def test_the_commented_blocks_of_a_new_file_are_the_defaults() -> None:
    text = re.sub(r"(?m)^  # (blocks:|  [a-z_]+: )", r"  \1", initial_config("lab"))
    blocks = parse_config(text, source="config.yaml").engine.blocks
    assert blocks == BlocksConfig(queue="batch", bank="science")


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ("{walltme: 1h}", "engine.blocks.walltme: unknown key; did you mean 'walltime'?"),
        ("{walltime: 1x}", "engine.blocks.walltime: '1x' is not a duration"),
        ("{walltime: inf}", "engine.blocks.walltime: must be more than 0 and less than infinity"),
        ("{walltime: 1m, grace: 1m}", "engine.blocks: grace (1m) must be less than walltime (1m)"),
        ("{min_blocks: 2}", "engine.blocks: min_blocks (2) must not be more than max_blocks (1)"),
        ("{}, executor: local", "engine: blocks are allocations of Flux"),
    ],
)
def test_invalid_block_settings_are_refused(blocks: str, said: str) -> None:
    assert said in complaint(f"engine: {{blocks: {blocks}}}")


def test_every_problem_is_named_with_its_key_what_was_given_and_what_is_allowed() -> None:
    said = complaint(
        """
        heartbeat_perod: 30
        max_in_flight: many
        heartbeat_period: 0.5
        log_level: LOUD
        public: "no"
        display_name: 7
        allowed_functions: [f]
        engine: {type: FluxEngine, executor: slurm, worker_per_node: 2, max_nodes: 0}
        """
    )
    assert said.startswith("config.yaml: 10 problems:")
    for line in (
        "heartbeat_perod: unknown key; did you mean 'heartbeat_period'?",
        'max_in_flight: must be a whole number more than 0, not "many"',
        "heartbeat_period: must be a number at least 1, at most 86400, not 0.5",
        'log_level: must be one of DEBUG, INFO, WARNING, ERROR, not "LOUD"',
        'public: must be true or false, not "no"',
        "display_name: must be text of 1 to 256 characters or null, not 7",
        "allowed_functions.0: 'f' is not a UUID",
        'engine.executor: must be one of auto, flux, local, not "slurm"',
        "engine.worker_per_node: unknown key; did you mean 'workers_per_node'?",
        "engine.max_nodes: must be a whole number more than 0 or null, not 0",
    ):
        assert f"\n  - {line}" in said


@pytest.mark.parametrize("option", ["allowed_environment", "plain_programs"])
def test_options_for_allowed_functions_require_allowed_functions(option: str) -> None:
    said = complaint(f"{option}: [a]")
    assert f"{option} is for endpoints with allowed_functions" in said
    functions = "allowed_functions: [00000000-0000-0000-0000-000000000000]"
    assert getattr(parse_config(f"{functions}\n{option}: [a]", source="c"), option) == ["a"]


def test_bounds_that_contradict_are_named_with_their_block() -> None:
    said = complaint("engine: {type: FluxEngine, min_workers: 3, max_workers: 2}")
    assert "engine: min_workers (3) is more than max_workers (2)" in said


def test_an_unknown_key_without_a_similar_one_gets_the_list_of_known_keys() -> None:
    said = complaint("zzz: 1")
    assert (
        "zzz: unknown key; known here: allowed_environment, allowed_functions, display_name,"
        in said
    )


def test_an_engine_of_globus_compute_is_refused_with_the_one_to_set() -> None:
    said = complaint("engine: {type: GlobusComputeEngine}")
    assert "this endpoint runs FluxEngine: set engine.type: FluxEngine" in said


def test_an_unknown_engine_is_refused_with_the_known_one() -> None:
    assert 'engine.type: must be FluxEngine, not "Foo"' in complaint("engine: {type: Foo}")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: [1\nb: 2\n", "line 2, column 2", "expected"),
        ("a:\n\t- 1\n", "line 2, column 1", "cannot start any token"),
        ("public: true\npublic: false\n", "line 2, column 1", "'public' is given twice"),
    ],
)
def test_bad_yaml_names_line_and_column(text: str, where: str, what: str) -> None:
    said = complaint(text)
    assert said.startswith(f"config.yaml, {where}: not valid YAML: ")
    assert what in said


@pytest.mark.parametrize("text", ["- 1\n", "just words", "7"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "`key: value`" in complaint(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"can't read .*config\.yaml"):
        load_config(tmp_path / "config.yaml")
