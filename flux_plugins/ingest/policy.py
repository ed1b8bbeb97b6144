"""A site's limits and defaults for the jobs that come from endpoints.

The table `[flux-endpoint]` of Flux's configuration, applied to a jobspec. Plain Python that needs
neither Flux nor this project, for any Python that Flux itself runs on (3.6 and later).

    [flux-endpoint.tasks]               # the job that a task becomes
    queue = "batch"                     # defaults, for what a job does not say
    bank = "endpoints"
    duration = "30m"
    queues = ["batch", "debug"]         # limits
    banks = ["endpoints"]
    max-nodes = 16
    max-cores = 512
    max-duration = "4h"

    [flux-endpoint.tasks.users.alice]   # the same keys again, for one user
    max-nodes = 64

    [flux-endpoint.workers]             # the jobs that hold an endpoint's resident workers
    queue = "batch"
"""

import difflib
import json
import math
import pwd
import re

#: The table in Flux's configuration.
TABLE = "flux-endpoint"
#: Where a job's mark is: `attributes.user.flux_endpoint`, an object with `kind` and `endpoint`.
MARK = "flux_endpoint"
#: What a user is told whose job meets a configuration that can't be read.
WRONG = "this site's Flux configuration is wrong, tell its administrator: %s"
#: Kinds of jobs, each with a table of its own.
KINDS = ("tasks", "workers")
#: What else stands in the table, for other plugins.
_OTHERS = ("start", "start-timeout")
_KIND_OF = {"workers": "workers"}  # any other mark is a task's

#: Resources are counted so far: beyond that, and at more levels, are too many for any limit.
_MAX_COUNT = 2**53
_DEEPEST = 32

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|d|)\Z")


def parse_duration(value):
    """Return a Flux Standard Duration (RFC 23), or a number of seconds, in seconds.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    text = str(value).strip().lower()
    if text in ("inf", "infinity"):
        return math.inf
    match = _DURATION.match(text)
    if match is None:
        raise ValueError("must be a duration such as 90s, 30m or 1.5h, not %s" % json.dumps(value))
    return float(match.group(1)) * _UNITS[match.group(2)]


def format_duration(seconds):
    """Return seconds as Flux Standard Duration, in the largest unit that keeps it above one."""
    if math.isinf(seconds):
        return "infinity"
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit]:
            return "%.6g%s" % (seconds / _UNITS[unit], unit)
    return "%.6gs" % seconds


def _text(value):
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text, not %s" % json.dumps(value))
    return value


def _texts(value):
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a list of texts, not %s" % json.dumps(value))
    return value


def _count(value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("must be a whole number, not %s" % json.dumps(value))
    return value


_KEYS = {
    "queue": _text,
    "bank": _text,
    "duration": parse_duration,
    "queues": _texts,
    "banks": _texts,
    "max-nodes": _count,
    "max-cores": _count,
    "max-duration": parse_duration,
}


class Policy:
    """A site's rules.

    Args:
        config: Flux's whole configuration.

    Raises:
        ValueError: a key is unknown or its value wrong; names all that are.
    """

    def __init__(self, config):
        problems = []
        table = _table(config.get(TABLE, {}), TABLE, problems)
        for key in table:
            if key not in KINDS + _OTHERS:
                problems.append(_unknown(TABLE, key, KINDS + _OTHERS))
        self._rules = {}
        for kind in KINDS:
            where = "%s.%s" % (TABLE, kind)
            given = dict(_table(table.get(kind, {}), where, problems))
            users = _table(given.pop("users", {}), where + ".users", problems)
            self._rules[kind] = (
                _rules(given, where, problems),
                {
                    user: _rules(rules, "%s.users.%s" % (where, user), problems)
                    for user, rules in users.items()
                },
            )
        if problems:
            raise ValueError("; ".join(problems))

    def rules(self, jobspec, userid):
        """Return what holds for a job, `None` if it comes from no endpoint.

        Args:
            jobspec: the jobspec as an object of JSON.
            userid: who submits it.
        """
        mark = mark_of(jobspec)
        if mark is None:
            return None
        everybody, users = self._rules[_KIND_OF.get(str(mark.get("kind")), "tasks")]
        rules = dict(everybody)
        for name in _names(userid):
            rules.update(users.get(name, {}))
        return rules

    def complete(self, jobspec, userid):
        """Give a job the site's defaults for what it does not say, in place."""
        rules = self.rules(jobspec, userid) or {}
        system = _object(_object(jobspec.get("attributes")).get("system"))
        for key in ("queue", "bank"):
            if key in rules and not system.get(key):
                system[key] = rules[key]
        if "duration" in rules and not system.get("duration"):
            system["duration"] = rules["duration"]

    def objections(self, jobspec, userid):
        """Return what a site has against a job, a sentence each."""
        rules = self.rules(jobspec, userid) or {}
        system = _object(_object(jobspec.get("attributes")).get("system"))
        found = [_choice(system, "queue", rules.get("queues"))]
        found.append(_choice(system, "bank", rules.get("banks")))
        found.append(_nodes(jobspec, rules.get("max-nodes")))
        cores, most = count(jobspec, "core"), rules.get("max-cores")
        if most is not None and cores > most:
            found.append("at most %s, this one asks for %d" % (_plural(most, "core"), cores))
        found.append(_duration(system, rules.get("max-duration")))
        return [each for each in found if each]


def mark_of(jobspec):
    """Return the mark of a job that comes from an endpoint, `None` if it comes from none."""
    mark = _object(_object(jobspec.get("attributes")).get("user")).get(MARK)
    return mark if isinstance(mark, dict) else None


def sentence(objections):
    """Return objections as one sentence for the user whose task it was."""
    return "this site allows a job of an endpoint " + "; and ".join(objections)


def count(jobspec, kind):
    """Return how many resources of a kind a job asks for; 0 if it names none.

    A node's count is taken as asked for, whether or not the job shares it.
    """
    return _count_in(jobspec.get("resources"), kind, _DEEPEST)


def _count_in(resources, kind, levels):
    if not isinstance(resources, list) or not resources:
        return 0
    if not levels:
        return _MAX_COUNT
    return min(_MAX_COUNT, sum(_count_of(_object(each), kind, levels - 1) for each in resources))


def _count_of(resource, kind, levels):
    number = _largest(resource.get("count", 1))
    if resource.get("type") == kind:
        return number
    return number * _count_in(resource.get("with"), kind, levels)


def _largest(given):
    """Return the most that a count may come to (RFC 14: a number, or a range as an object)."""
    if isinstance(given, dict):
        given = given.get("max", given.get("min", 1))
    return max(0, min(given, _MAX_COUNT)) if isinstance(given, int) else 1


def _object(value):
    """Return `value` if it is an object of JSON, else an empty one: Flux refuses such a job."""
    return value if isinstance(value, dict) else {}


def _nodes(jobspec, most):
    if most is None:
        return None
    nodes = count(jobspec, "node")
    if nodes > most:
        return "at most %s, this one asks for %d (num_nodes)" % (_plural(most, "node"), nodes)
    slots = count(jobspec, "slot")
    if not nodes and slots > most:
        return (
            "at most %s, and the %d ranks of this one may be spread over more: "
            "give it num_nodes" % (_plural(most, "node"), slots)
        )
    return None


def _duration(system, most):
    if most is None or math.isinf(most):
        return None
    duration, limit = system.get("duration") or 0, format_duration(most)
    if duration == 0 or not isinstance(duration, (int, float)):
        return "a walltime of at most %s, this one has none" % limit
    if duration > most:
        asked = format_duration(duration)
        return "a walltime of at most %s, this one asks for %s" % (limit, asked)
    return None


def _choice(system, key, allowed):
    if allowed is None or system.get(key) in allowed:
        return None
    given = "names none" if not system.get(key) else "asks for %s" % json.dumps(system[key])
    if not allowed:
        return "no %s, this one %s" % (key, given) if system.get(key) else None
    return "only the %s %s, this one %s" % (key, " or ".join(allowed), given)


def _plural(number, noun):
    return "%d %s%s" % (number, noun, "" if number == 1 else "s")


def _names(userid):
    names = [str(userid)]
    try:
        names.append(pwd.getpwuid(userid).pw_name)
    except (KeyError, OverflowError):
        pass
    return names


def _table(value, where, problems):
    if isinstance(value, dict):
        return value
    problems.append("%s must be a table, not %s" % (where, json.dumps(value)))
    return {}


def _rules(given, where, problems):
    rules = {}
    for key, value in _table(given, where, problems).items():
        if key not in _KEYS:
            problems.append(_unknown(where, key, _KEYS))
            continue
        try:
            rules[key] = _KEYS[key](value)
        except ValueError as error:
            problems.append("%s.%s %s" % (where, key, error))
    return rules


def _unknown(where, key, known):
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = "did you mean %s?" % near[0] if near else "known are %s" % ", ".join(sorted(known))
    return "%s.%s is unknown, %s" % (where, key, hint)
