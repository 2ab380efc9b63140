"""Services, checkers and failover rules: what has to fit together, and who has to agree on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.config_support import KEYS, SHOP, changed, write

from nlbfarm.config import FarmConfig, config_digest, dump, load
from nlbfarm.config.changes import Changes, compare
from nlbfarm.config.derive import failover_rules, former_digest, service_of, service_spec, settings
from nlbfarm.config.farm import LastNode
from nlbfarm.config.loading import examine
from nlbfarm.core.supervision import Action, Supervision, SupervisionSettings

APACHE = """
[[services]]
name = "apache"
systemd = "apache2"
"""
DATABASE = """
[[services]]
name = "database"
command = ["/usr/sbin/db", "--foreground"]
"""
GATEWAYS = """
[[checkers]]
name = "gw1"
type = "ping"
address = "192.0.2.1"
on_failure = "none"

[[checkers]]
name = "gw2"
type = "ping"
address = "192.0.2.2"
on_failure = "none"
"""
RULE = """
[[failover_rules]]
name = "gateways"
when = "gw1 down and gw2 down"
"""
API = """
[[rules]]
name = "api"
vip = "192.0.2.100"
ports = [8080]
"""


def problems(directory: Path, text: str) -> list[str]:
    return [str(problem) for problem in examine(write(directory, text)).problems]


def page(keys: str) -> str:
    """Return the shop with these keys in its checker ``page``."""
    return changed(('on_failure = "wait"', keys))


def test_everything_at_once_is_right(tmp_path: Path) -> None:
    text = page('on_failure = "restart"\nservice = "apache"') + APACHE + DATABASE + GATEWAYS + RULE
    examined = examine(write(tmp_path, text.replace('"apache2"', '"apache2"\nafter = ["database"]')))
    assert (examined.problems, examined.warnings) == ((), ())
    config = examined.config
    assert config is not None
    assert [service.kind for service in config.services] == ["systemd", "command"]
    assert config.services[0].systemd == "apache2.service"
    assert FarmConfig.model_validate(dump(config)) == config


# -- services ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            page('on_failure = "restart"\nservice = "apach"') + APACHE + DATABASE,
            'checkers[0].service: no service is called "apach"; did you mean "apache"? (there: ',
        ),
        (
            page('on_failure = "restart"'),
            'checkers[0].on_failure: "restart" of which service? write a [[services]] table for it',
        ),
        (
            page('on_failure = "restart"') + APACHE + DATABASE,
            'checkers[0].on_failure: "restart" of which service? write service = one of "apache", "database"',
        ),
        (
            page('on_failure = "restart-all"'),
            'checkers[0].on_failure: there is no service to restart; write [[services]], or "wait"',
        ),
        (
            SHOP + APACHE + "after = ['db']\n" + DATABASE,
            'services[0].after[0]: no service is called "db" (there: apache, database) (service "apache"',
        ),
        (
            SHOP + APACHE + "after = ['apache']\n",
            'services[0].after: goes round in a circle: apache after apache (service "apache"',
        ),
        (
            SHOP + APACHE + DATABASE.replace("database", "apache"),
            'services[1].name: "apache" is already the name of services[0]',
        ),
        (
            SHOP + '[[services]]\nname = "apache"\n',
            "services[0]: a service has exactly one of systemd, windows, command, scripts and type",
        ),
        (
            SHOP + APACHE + "environment = { A = '1' }\n",
            "services[0]: environment is for a service with command",
        ),
        (
            page('on_failure = "restart"\ninitial_delay = "30s"') + APACHE,
            'checkers[0].initial_delay: "30s" is too long: service "apache" has to answer within its',
        ),
    ],
)
def test_what_is_wrong_with_services(tmp_path: Path, text: str, message: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(message)


def test_a_circle_is_told_once_however_long(tmp_path: Path) -> None:
    ring = "".join(
        f'[[services]]\nname = "{one}"\nsystemd = "{one}"\nafter = ["{other}"]\n'
        for one, other in ("ab", "bc", "ca")
    )
    aside = '[[services]]\nname = "d"\nsystemd = "d"\nafter = ["a"]\n'
    (found,) = problems(tmp_path, SHOP + aside + ring)
    assert found.startswith("services[1].after: goes round in a circle: a after b after c after a")


def test_of_one_service_alone_it_need_not_be_said_which(tmp_path: Path) -> None:
    config = load(write(tmp_path, page('on_failure = "restart"') + APACHE))
    entry = config.checkers[0]
    assert entry.service is None
    assert service_of(config, entry.service, entry.on_failure) == "apache"
    assert service_of(config, None, Action.WAIT) is None


def test_a_name_that_is_wrong_hides_no_other(tmp_path: Path) -> None:
    """Whether the service with the wrong name is the one that is meant is not known."""
    text = page('on_failure = "restart"\nservice = "web"') + APACHE.replace('"apache"', '"my apache"')
    (found,) = problems(tmp_path, text)
    assert found.startswith('services[0].name: "my apache" is not a name')


def test_a_service_is_supervised_as_it_is_written(tmp_path: Path) -> None:
    text = SHOP + DATABASE + APACHE
    text += 'after = ["database"]\nstart_timeout = "2m"\nhold = "0s"\nmax_restarts = 5\nwithin = "1h"\n'
    text += 'backoff = "2s"\nlongest_backoff = "5m"\non_exit = "drain"\n'
    spec = service_spec(load(write(tmp_path, text)).services[1])
    assert (spec.name, spec.after, spec.on_exit) == ("apache", ("database",), Action.DRAIN)
    assert (spec.start_timeout, spec.hold, spec.backoff, spec.longest_backoff) == (120, 0, 2, 300)
    assert (spec.max_restarts, spec.within) == (5, 3600)


def test_scripts_are_told_with_their_line(tmp_path: Path) -> None:
    text = SHOP + '[[services]]\nname = "shop"\n[services.scripts]\nstart = ["/bin/true"]\nstop = "down"\n'
    (found,) = problems(tmp_path, text)
    line = text[: text.index("stop =")].count("\n") + 1
    assert found.startswith('services[0].scripts.stop: "down" is one text, and no shell takes it apart')
    assert f"line {line})" in found
    missing, unknown = problems(tmp_path, text.replace("stop =", "stopp ="))
    assert missing.startswith("services[0].scripts.stop: missing")
    assert unknown.startswith(
        'services[0].scripts.stopp: unknown key; did you mean "stop"? (known: prestart,'
    )


# -- checkers ------------------------------------------------------------------------------


def test_an_ip_checker_of_an_unknown_virtual_ip(tmp_path: Path) -> None:
    checker = '[[checkers]]\nname = "vip"\ntype = "ip"\naddress = "192.0.2.101"\n'
    (found,) = problems(tmp_path, SHOP + checker)
    assert found.startswith(
        'checkers[1].address: "192.0.2.101" is not the address of any [[vips]] table (there: 192.0.2.100)'
    )
    assert problems(tmp_path, SHOP + checker.replace("101", "100")) == []


# -- failover rules ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (
            "gw1 down and gw3 down",
            'failover_rules[0].when: no checker is called "gw3"; did you mean "gw2"? (failover rule',
        ),
        (
            "gw1 down und gw2 down",
            'failover_rules[0].when: "und" at character 10: "and", "or" or the end should stand here',
        ),
        ("gw1", 'failover_rules[0].when: the condition ends where "up" or "down" should follow'),
        ("3 of (gw1, gw2) down", 'failover_rules[0].when: "3 of" at character 1: write a number from 1 to 2'),
        ("gw1 down & gw2 down", 'failover_rules[0].when: "&" at character 10 cannot stand in a condition'),
        ("", "failover_rules[0].when: the condition ends where the name of a checker should follow"),
    ],
)
def test_what_is_wrong_with_a_condition(tmp_path: Path, when: str, message: str) -> None:
    (found,) = problems(tmp_path, SHOP + GATEWAYS + RULE.replace("gw1 down and gw2 down", when))
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('action = "restart"', 'failover_rules[0].action: "restart" of which service? write a [[services]]'),
        ('action = "leave"', 'failover_rules[0].action: "leave" is not known; write "none" or "wait" or'),
        (
            'action = "restart"\nservice = "apache"',
            'failover_rules[0].service: no service is called "apache"',
        ),
        ("confirm = 5", "failover_rules[0].confirm: a time needs a unit"),
        ('on_failure = "wait"', "failover_rules[0].on_failure: unknown key"),
    ],
)
def test_what_is_wrong_with_a_failover_rule(tmp_path: Path, keys: str, message: str) -> None:
    (found,) = problems(tmp_path, SHOP + GATEWAYS + RULE + keys + "\n")
    assert found.startswith(message)


def test_a_rule_that_restarts_nothing_has_no_service(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, SHOP + APACHE + GATEWAYS + RULE + 'service = "apache"\n')
    assert found.startswith('failover_rules[0].service: is for action = "restart"; with "wait" no service')


def test_the_words_of_an_action_are_those_of_the_core(tmp_path: Path) -> None:
    text = SHOP + APACHE + GATEWAYS
    for action in Action:
        rule = RULE.replace("gateways", f"g-{action}") + f'action = "{action}"\n'
        assert problems(tmp_path, text + rule) == []


def test_a_checker_that_would_act_before_the_rule_is_doubted(tmp_path: Path) -> None:
    examined = examine(write(tmp_path, SHOP + GATEWAYS.replace('on_failure = "none"\n', "") + RULE))
    assert [warning.path for warning in examined.warnings] == ["checkers[1]", "checkers[2]"]
    assert 'failover rule "gateways" counts it' in examined.warnings[0].message
    explicit = GATEWAYS.replace('"none"', '"wait"')
    assert examine(write(tmp_path, SHOP + explicit + RULE)).warnings == ()


def test_rules_as_the_core_gets_them(tmp_path: Path) -> None:
    text = SHOP + APACHE + GATEWAYS + RULE + 'action = "restart"\nconfirm = "3s"\n'
    config = load(write(tmp_path, text))
    (rule,) = failover_rules(config)
    assert (rule.name, rule.action, rule.service, rule.confirm) == ("gateways", Action.RESTART, "apache", 3)
    assert rule.when.value({"gw1": False, "gw2": False}) is True
    assert rule.when.value({"gw1": False, "gw2": None}) is None
    Supervision(SupervisionSettings(rules=(rule,)))


# -- failback ------------------------------------------------------------------------------


def test_failback_is_for_failover(tmp_path: Path) -> None:
    text = SHOP + API + 'failback = "manual"\n'
    (found,) = problems(tmp_path, text)
    assert found.startswith('rules[1].failback: only a rule with mode = "failover" has a failback')
    assert problems(tmp_path, text + 'mode = "failover"\n') == []
    assert problems(tmp_path, SHOP + API + 'failback = "auto"\n') == []


def test_rules_of_a_group_fail_back_alike(tmp_path: Path) -> None:
    group = 'mode = "failover"\ngroup = "g"\n'
    other = API.replace("api", "admin").replace("8080", "8081") + group
    (found,) = problems(tmp_path, SHOP + API + group + other + 'failback = "manual"\n')
    assert found.startswith('rules[2].failback: "manual", but rule "api" of the same group "g" has "auto"')


def test_the_core_is_told_which_groups_stay(tmp_path: Path) -> None:
    config = load(write(tmp_path, SHOP + API + 'mode = "failover"\nfailback = "manual"\n'))
    found = settings(config, KEYS, 1)
    assert dict(zip(found.groups, found.sticky, strict=True)) == {"api": True, "web": False}


# -- who has to agree ----------------------------------------------------------------------

FAILOVER = SHOP.replace('"client-port"', '"client-port"\nmode = "failover"')


def digest(directory: Path, text: str) -> str:
    return config_digest(load(write(directory, text))).hex()


@pytest.mark.parametrize(
    "text",
    [
        SHOP + APACHE,
        SHOP + GATEWAYS + RULE,
        changed(('name = "shop"', 'name = "shop"\nlast_node = "leave"')),
        SHOP + '[events]\nmax_size = "5MB"\n',
        SHOP + '[notify]\nscript = ["/usr/local/bin/page-me"]\nbatch = "5m"\n',
        changed(('"client-port"', '"client-port"\nfailback = "auto"')),
    ],
    ids=["services", "checkers and rules", "last_node", "events", "notify", "failback written out"],
)
def test_each_host_may_have_its_own(tmp_path: Path, text: str) -> None:
    """The digest is that of the version before these keys: a farm is upgraded node by node."""
    assert digest(tmp_path, text) == "51c10a0072f88165"


def test_nodes_agree_on_a_manual_failback(tmp_path: Path) -> None:
    assert digest(tmp_path, FAILOVER) == "541620b7cfa77ee4"
    automatic = FAILOVER.replace('"failover"', '"failover"\nfailback = "auto"')
    assert digest(tmp_path, automatic) == "541620b7cfa77ee4"
    assert former_digest(load(write(tmp_path, automatic))).hex() == "a68e73d8a83a2371"
    assert digest(tmp_path, automatic.replace('"auto"', '"manual"')) not in (
        "541620b7cfa77ee4",
        digest(tmp_path, SHOP),
    )


# -- while a node runs ---------------------------------------------------------------------


def found(directory: Path, before: str, after: str) -> Changes:
    old = load(write(directory, before))
    return compare(old, load(write(directory, after)), KEYS, KEYS, 1, old.node(1).addresses)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (SHOP, SHOP + GATEWAYS, ['checkers "gw1" is new', 'checkers "gw2" is new']),
        (SHOP, page('on_failure = "drain"'), ['checkers "page".on_failure: "wait" -> "drain"']),
        (SHOP + GATEWAYS, SHOP + GATEWAYS + RULE, ['failover_rules "gateways" is new']),
        (
            SHOP + GATEWAYS + RULE,
            SHOP + GATEWAYS + RULE.replace("and", "or"),
            ['failover_rules "gateways".when: "gw1 down and gw2 down" -> "gw1 down or gw2 down"'],
        ),
    ],
)
def test_checkers_and_rules_are_taken_over(tmp_path: Path, before: str, after: str, said: list[str]) -> None:
    assert found(tmp_path, before, after) == Changes(tuple(said), ())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (SHOP, SHOP + APACHE, ['services "apache" is new']),
        (SHOP + APACHE, SHOP, ['services "apache" is removed']),
        (SHOP + APACHE, SHOP + APACHE + 'hold = "5s"\n', ['services "apache".hold: "3s" -> "5s"']),
        (
            SHOP + DATABASE + "environment = { A = 'secret', B = 'b' }\n",
            SHOP + DATABASE + "environment = { A = 'hidden', B = 'b', C = 'c' }\n",
            ['services "database".environment: other values of A, C'],
        ),
        (SHOP, SHOP + '[events]\nmax_size = "5MB"\n', ['events.max_size: "1MB" -> "5MB"']),
        (SHOP, SHOP + '[notify]\nbatch = "5m"\n', ['notify.batch: "1m" -> "5m"']),
        (
            SHOP,
            changed(('name = "shop"', 'name = "shop"\nlast_node = "leave"')),
            ['farm.last_node: "stay" -> "leave"'],
        ),
        (
            FAILOVER,
            FAILOVER.replace('"failover"', '"failover"\nfailback = "manual"'),
            ['rules "web".failback: "auto" -> "manual"'],
        ),
    ],
)
def test_what_needs_a_new_process(tmp_path: Path, before: str, after: str, said: list[str]) -> None:
    assert found(tmp_path, before, after) == Changes((), tuple(said))


def test_the_last_node_stays_unless_told_otherwise(tmp_path: Path) -> None:
    assert load(write(tmp_path)).farm.last_node is LastNode.STAY
    (wrong,) = problems(tmp_path, changed(('name = "shop"', 'name = "shop"\nlast_node = "go"')))
    assert wrong.startswith('farm.last_node: "go" is not known; write "stay" or "leave"')
