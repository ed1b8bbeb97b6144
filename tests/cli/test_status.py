"""`flux-endpoint status`, as a person and as a program sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid

import pytest
from tests.cli.conftest import PATIENCE, WAIT, configure

from alarms import memory_alarm
from flux_endpoint import __version__
from flux_endpoint.processes import is_readable
from waiting import until

live = pytest.mark.usefixtures("stack")
pytestmark = [pytest.mark.rabbitmq, pytest.mark.stack]


def lines_of(text):
    """The screen as a dictionary: each line by the word before it."""
    return {line[:10].rstrip(): line[11:] for line in text.splitlines() if line}


def with_queues(terminal, name, status=0):
    """The screen, as soon as the broker has told in time how long the queues are."""

    def told():
        shown = lines_of(terminal.run("status", name, status=status).stdout)
        queues = shown.get("Queues", "")
        complete = all(each in queues for each in ("results", "events", "heartbeats"))
        return complete and "queue unknown" not in shown["Tasks"] and shown

    return until(told, longest_pause=1)


class TestScreen:
    def test_status_shows_service_database_and_broker(self, stack):
        shown = with_queues(stack, "local")
        url = stack.credentials["service_url"]
        assert shown["Service"].startswith(f"{url}, release {__version__}, up for ")
        assert "user local" in shown["Service"]
        assert re.fullmatch(r"sqlite, schema \d+, [\d.]+ \w?i?B free", shown["Database"])
        assert re.fullmatch(
            r"RabbitMQ [\d.]+ at 127.0.0.1:\d+/, connected for \d+[smh]", shown["Broker"]
        )
        assert re.fullmatch(
            r"results \d+, events \d+, heartbeats \d+; dead letters 0", shown["Queues"]
        )

    @pytest.mark.parametrize("how", ["name", "id"])
    def test_an_endpoint_is_named_by_its_name_or_its_id(self, stack, how):
        named = "local" if how == "name" else stack.endpoint_id()
        shown = lines_of(stack.out("status", named))
        assert shown["Endpoint"].startswith(f"local ({stack.endpoint_id()}), online for ")
        assert re.search(r"reported \d+s ago$", shown["Endpoint"])
        assert re.fullmatch(r"pid \d+ on \S+, running", shown["Process"])
        assert "embedded executor" in shown["Executor"]

    def test_status_counts_workers_jobs_and_tasks_and_shows_rates(self, stack, gate):
        with stack.executor() as executor:
            executor.submit(abs, -1).result()
            running = executor.submit(WAIT, gate=str(gate))

            def seen():  # a report may come between a result and its confirm
                shown = lines_of(stack.out("status", "local"))
                settled = "0 in the queue; 1 taken, 0 results" in shown["Tasks"]
                settled = settled and shown["Jobs"].startswith("0 running, 0 waiting")
                return settled and "1 busy" in shown["Workers"] and shown

            shown = until(seen, longest_pause=1)
            # Numbers of the last report stand with its age; the queue's length is fresh.
            ago = r" \(\d+[sm] ago\)"
            assert re.fullmatch(r"\d+ on 1 node: 1 busy, \d+ idle" + ago, shown["Workers"])
            tasks = r"0 in the queue; 1 taken, 0 results on their way, \d+ finished since its start"
            assert re.fullmatch(tasks + ago, shown["Tasks"])
            number = r"[\d.e-]+"
            rates = f"{number} \\(1m\\), {number} \\(5m\\), {number} \\(15m\\)"
            assert re.fullmatch(f"tasks/s taken {rates}; finished {rates}{ago}", shown["Rates"])
            assert not shown["Rates"].startswith("tasks/s taken 0 ")
            gate.touch()
            running.result()

    @pytest.mark.flux
    def test_status_shows_the_flux_instance_its_jobs_and_its_usage(self, in_flux, gate, flux_uri):
        with in_flux.executor("fluxed", resource_specification={"num_ranks": 2}) as executor:
            running = executor.submit(WAIT, gate=str(gate))
            jobs = "1 running, 0 waiting for resources"
            cores = re.compile(r"\b[1-9]\d* of \d+ cores allocated")

            def seen():  # a busy instance may not tell in time for each report what it has
                shown = lines_of(in_flux.out("status", "fluxed"))
                return shown["Jobs"].startswith(jobs) and cores.search(shown["Flux"]) and shown

            shown = until(seen, longest_pause=1)
            assert re.match(r"Flux \d+\.\d+\.\d+\S* instance at ", shown["Flux"])
            assert flux_uri in shown["Flux"]
            assert "none of its own" in shown["Blocks"]
            gate.touch()
            running.result()

    def test_several_endpoints_are_a_table(self, stack):
        configure(stack, "spare")
        lines = stack.out("status").splitlines()
        titles, *rows = lines[lines.index("") + 1 :]
        assert titles.split() == [
            "NAME", "ID", "STATUS", "SINCE", "REPORT", "EXECUTOR",
            "WORKERS", "BUSY", "JOBS", "QUEUE", "TAKEN", "TASKS/S",
        ]  # fmt: skip
        cells = {row.split()[0]: row.split() for row in rows}
        assert cells["local"][1:3] == [stack.endpoint_id(), "online"]
        assert cells["spare"][1:3] == ["-", "stopped"]

    def test_another_user_sees_public_endpoints_by_name(self, stack, bare):
        configure(stack, "commons", public=True)
        stack.start("commons")
        ada = stack.user("ada")
        said = bare.out("status", **ada)
        assert f"commons ({stack.endpoint_id('commons')}), online for" in said
        assert stack.endpoint_id() not in said
        # Where it runs is its owner's affair.
        assert "Process" not in lines_of(bare.out("status", "commons", **ada))
        stack.run("stop", "commons")

    def test_colours_are_for_terminals(self, stack):
        assert "\033[" not in stack.out("status", "local")
        assert "\033[01;32mlocal (" in stack.out("status", "local", "--color")
        assert "\033[" not in stack.out("status", "local", "--color=never")


class TestJson:
    def test_the_json_has_everything_that_the_screen_has(self, stack):
        def complete():  # the broker tells in time how long the queues are
            told = stack.json("status", "local")
            queues = len(told["service"]["queues"]) == 4 and told["endpoints"][0]["queue"]
            return queues and told

        told = until(complete, longest_pause=1)
        service = told["service"]
        assert service["url"] == stack.credentials["service_url"]
        assert (service["error"], service["user"]) == (None, "local")
        assert abs(service["clock_skew"]) < 5 + service["seconds"]
        assert service["broker"]["connected"]
        assert service["queues"]["results"]["consumers"] == 1
        (endpoint,) = told["endpoints"]
        assert endpoint["endpoint_id"] == stack.endpoint_id()
        assert (endpoint["status"], endpoint["absence"]) == ("online", None)
        assert endpoint["local"]["status"] == "running"
        assert endpoint["report"]["executor"] == "local"
        assert endpoint["queue"]["consumers"] == 1

    def test_the_keys_of_the_json_stay(self, stack):
        told = stack.json("status", "local")
        assert set(told) == {"service", "endpoints"}
        assert set(told["service"]) == {
            "url", "error", "version", "user", "started", "time", "database", "broker", "queues",
            "seconds", "clock_skew",
        }  # fmt: skip
        assert set(told["endpoints"][0]) == {
            "name", "display_name", "owner", "endpoint_id", "status", "absence", "since",
            "last_seen", "report", "queue", "error", "local",
        }  # fmt: skip


def kill(terminal, name):
    """Kill an endpoint's agent, and wait until it is gone."""
    (entry,) = terminal.json("status", name, status=None)["endpoints"]
    pidfd = os.pidfd_open(entry["local"]["pid"])
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert is_readable(pidfd, PATIENCE)
    os.close(pidfd)


class TestTrouble:
    def test_an_endpoint_never_started_exits_with_1_and_says_how_to_start_it(self, stack):
        configure(stack, "fresh")
        done = stack.run("status", "fresh", status=1)
        shown = lines_of(done.stdout)
        assert shown["Endpoint"] == "fresh, never started: flux-endpoint start fresh"

    def test_an_endpoint_that_was_stopped_says_since_when(self, stack):
        configure(stack, "brief")
        stack.start("brief")
        stack.stop("brief")
        shown = with_queues(stack, "brief", status=1)
        stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        pattern = rf"brief \(\S+\), offline for \d+[sm] \(since {stamp}\), it was stopped"
        assert re.fullmatch(pattern, shown["Endpoint"])
        assert shown["Process"] == "none here: flux-endpoint start brief"
        assert shown["Tasks"] == "0 in the queue"
        assert "Workers" not in shown

    def test_a_killed_endpoint_of_this_machine_is_shown_at_once(self, stack):
        configure(stack, "brittle", heartbeat_period=3600)
        stack.start("brittle")
        kill(stack, "brittle")
        shown = lines_of(stack.run("status", "brittle", status=1).stdout)
        assert "offline: its process here has ended, after its last report" in shown["Endpoint"]
        assert shown["Process"] == "none here: flux-endpoint start brittle"
        assert "Workers" not in shown
        (row,) = [row.split() for row in stack.out("status").splitlines() if "brittle" in row]
        assert row[2] == "offline"
        told = json.loads(stack.run("status", "brittle", "--json", status=1).stdout)
        (entry,) = told["endpoints"]
        assert (entry["status"], entry["absence"]) == ("offline", "ended")
        stack.start("brittle")
        assert stack.json("status", "brittle")["endpoints"][0]["status"] == "online"
        stack.run("stop", "brittle")

    def test_a_killed_endpoint_is_shown_as_silent(self, stack):
        configure(stack, "victim", heartbeat_period=1)  # soon missed
        stack.start("victim")
        kill(stack, "victim")
        stack.await_status("victim", "offline")

        def silent():
            said = stack.run("status", "victim", status=None).stdout
            return "its last report came" in said and said

        shown = until(silent, longest_pause=1)
        assert (
            "when its last report came: it was killed, or its reports do not reach the broker"
            in shown
        )
        (entry,) = json.loads(stack.run("status", "victim", "--json", status=1).stdout)["endpoints"]
        assert (entry["status"], entry["absence"]) == ("offline", "silent")
        assert entry["since"] == entry["last_seen"]

    def test_a_broker_that_takes_no_messages_is_shown_with_the_reason(self, stack):
        with memory_alarm(stack.rabbitmqctl):

            def told():
                said = stack.run("status", "local", status=None)
                return "results and status reports wait" in said.stdout and said

            said = until(told, longest_pause=1)
            shown = lines_of(said.stdout)
            assert re.search(r", connected for \d+\w, but takes no messages: low on memory$",
                             shown["Broker"])  # fmt: skip
            assert re.search(r"running: the broker takes no messages now \(low on memory\)",
                             shown["Process"])  # fmt: skip
            assert said.returncode == 69
            found = json.loads(stack.run("doctor", "local", "--json", status=1).stdout)["findings"]
            bad = {each["check"]: each for each in found if each["state"] == "failed"}
            assert "takes no messages: low on memory" in bad["service.broker"]["said"]
            assert "rabbitmq-diagnostics alarms" in bad["service.broker"]["mend"]
            assert bad["endpoint.agent"]["mend"].startswith("fix that")
        shown = until(lambda: stack.run("status", "local", status=None).returncode == 0
                      and lines_of(stack.out("status", "local")))  # fmt: skip
        assert "takes no messages" not in str(shown)

    def test_an_unknown_name_exits_with_66_and_lists_the_known_ones(self, stack):
        said = stack.err("status", "nowhere", status=66)
        assert "no endpoint is called 'nowhere', neither here nor at http://" in said
        assert "local" in said

    def test_an_unknown_id_exits_with_66(self, stack):
        assert "does not know endpoint" in stack.err("status", str(uuid.uuid4()), status=66)

    def test_a_wrong_token_exits_with_77(self, stack):
        wrong = {
            "FLUX_ENDPOINT_SERVICE_URL": stack.credentials["service_url"],
            "FLUX_ENDPOINT_TOKEN": "wrong",
        }
        done = stack.run("status", status=77, **wrong)
        assert "does not accept the token from FLUX_ENDPOINT_SERVICE_URL" in done.stdout
        assert "local" in done.stdout

    def test_without_a_service_status_shows_what_this_machine_knows(self, stack, free_port):
        away = {
            "FLUX_ENDPOINT_SERVICE_URL": f"http://127.0.0.1:{free_port}",
            "FLUX_ENDPOINT_TOKEN": "token",
        }
        shown = lines_of(stack.run("status", "local", status=69, **away).stdout)
        assert f"can't reach the service for GET http://127.0.0.1:{free_port}" in shown["Service"]
        assert shown["Endpoint"].startswith(f"local ({stack.endpoint_id()})")
        assert shown["Process"].endswith(", running")
        told = json.loads(stack.run("status", "local", "--json", status=69, **away).stdout)
        assert told["endpoints"][0]["status"] == "unknown"

    def test_a_url_that_is_not_a_service_exits_with_78(self, stack):
        done = stack.run(
            "status",
            status=78,
            FLUX_ENDPOINT_SERVICE_URL=stack.credentials["service_url"] + "/elsewhere",
            FLUX_ENDPOINT_TOKEN="token",
        )
        assert "/elsewhere does not know GET /v3/status: is that URL (from FLUX" in done.stdout

    def test_without_credentials_status_says_how_to_get_them(self, bare):
        done = bare.run("status", status=78)
        assert "no credentials: set FLUX_ENDPOINT_SERVICE_URL" in done.stdout
        assert "No endpoints yet" in done.stdout
