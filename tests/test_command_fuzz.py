"""Random command lines: a configuration, or one sentence without control characters; never a traceback."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from tiny_jobs import command

from rift.command_line import GROUPS, check_arguments
from rift.conf_files import CONF
from rift.config import Config, to_config
from rift.errors import LONGEST_SENTENCE, UserError, printable, shown
from rift.explain import EXPECTED, explain, option_names
from rift.main import quoted

hypothesis = pytest.importorskip("hypothesis", reason="waits for the extra dev")
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

REPEATABLE = {"derandomize": True, "deadline": None, "database": None}
REPEATABLE["suppress_health_check"] = list(HealthCheck)

# Letters that mean something to Hydra or to a terminal, among all the others, surrogates included.
_letters = st.one_of(
    st.sampled_from(list("=,:.[]{}()'\"\\$~+@/- \t\n\r\0\x1b\x7f\x9b\u202e\u2028\udc80é日𝛼0aZ_%#*&|;<>!?^`")),
    st.characters(categories=None),
)
_text = st.text(_letters, max_size=40)
_long = st.builds(
    lambda piece, times: piece * times, st.text(_letters, min_size=1, max_size=3), st.integers(1, 4000)
)
_names = st.one_of(
    st.sampled_from([*option_names(), *GROUPS, "hydra.run.dir", "hydra/launcher", "hydra", "attack@x"]), _text
)
_values = st.one_of(
    st.sampled_from(
        [
            "null",
            "true",
            "[]",
            "{}",
            "nan",
            "-inf",
            "1e400",
            "0x10",
            "[1,[2]]",
            "{a:1}",
            "range(3)",
            "''",
            "???",
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
    _text,
    _long,
)
_overrides = st.builds(
    lambda sign, name, equals, value: f"{sign}{name}{equals}{value}",
    st.sampled_from(["", "", "", "+", "++", "~"]),
    _names,
    st.sampled_from(["=", "=", "=", "", "=="]),
    _values,
)
# What reaches Hydra more often than not: names that exist, plain values.
_likely = st.builds(
    lambda sign, name, value: f"{sign}{name}={value}",
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from([*option_names(), *GROUPS, "model.nme", "stage", "stage.at", "attack@selection_attack"]),
    st.one_of(
        st.sampled_from(
            ["null", "true", "[]", "{}", "nan", "[1,[2]]", "{a:1}", "''", "???", "${seed}", "${x}"]
        ),
        st.integers().map(str),
        st.text("abcé日_.- ", max_size=8),
    ),
)


def sentence(error: Exception) -> None:
    """It is one, and a terminal may have it."""
    said = printable(explain(error))
    assert said.strip() and shown(said) == said, repr(said)
    assert len(said) <= LONGEST_SENTENCE + 3


@settings(max_examples=400, **REPEATABLE)
@given(st.lists(_overrides, max_size=3))
@example(["--config-dir=/tmp"])
@example(["-"])
@example(["--"])
@example(["seed=" + "(" * 3000])
def test_any_text_is_read_or_refused(arguments):
    try:
        check_arguments([quoted(argument) for argument in arguments])
    except EXPECTED as error:
        sentence(error)


@pytest.fixture(scope="module")
def shipped():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@settings(max_examples=40, **REPEATABLE)
@given(arguments=st.lists(_likely, min_size=1, max_size=2))
def test_any_option_is_composed_or_refused(shipped, arguments):
    try:
        arguments = [quoted(argument) for argument in arguments]
        check_arguments(arguments)
        assert isinstance(to_config(compose("config", arguments)), Config)
    except EXPECTED as error:
        sentence(error)


@settings(max_examples=20, **REPEATABLE)
@given(arguments=st.lists(_text.filter(lambda text: text.strip("- ")), min_size=1, max_size=2))
def test_through_the_entry_point(arguments):
    """What no option begins like is refused with exit code 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rift.job.run_job", lambda *_: pytest.fail("the job began"))
        assert command(*arguments, "no.such.option=1") == 2


def test_sentences_are_checked_at_all():
    with pytest.raises(AssertionError):
        sentence(UserError(""))
