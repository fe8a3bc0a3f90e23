"""Files that describe guests and workloads: what is wrong is named with its line."""

import pytest

from tdpmmu.simulation import toml_file
from tdpmmu.simulation.toml_file import FileError, TomlFile
from tdpmmu.simulation.units import parse_bytes, parse_ns, show_bytes, show_ns

TEXT = """\
# a guest
[guest]
memory = "16G"
vcpsu = 4

[[host]]
event = "unmap"
[[host]]
evnt = "unmap"
"""


def message(text, use):
    with pytest.raises(FileError) as caught:
        use(TomlFile("g.toml", text).root())
    return str(caught.value)


def guest(root):
    table = root.table("guest")
    table.take("memory", lambda value: parse_bytes(toml_file.text(value)))
    table.take("vcpus", toml_file.whole(1, 512), 1)
    table.finish()


def test_a_key_nobody_knows_is_named_with_its_line_and_the_nearest_one():
    expected = "g.toml:4: key 'vcpsu' unknown in [guest]; did you mean 'vcpus'?"
    assert message(TEXT, guest) == expected


def test_a_misspelt_key_that_is_needed_is_not_called_missing():
    def second(root):
        root.tables("host")[1].take("event", toml_file.text)

    assert message(TEXT, second) == "g.toml:9: key 'evnt' unknown in [host]; did you mean 'event'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[guest]\n", "g.toml:1: key 'memory' missing in [guest]"),
        (
            '[guest]\nmemory = "16 eggs"\n',
            "g.toml:2: key 'memory': expected a size such as '16G', not '16 eggs'",
        ),
        ("[guest]\nmemory = 3\n", "g.toml:2: key 'memory': expected text in quotes, not 3"),
        (
            '[guest]\nmemory = "1G"\nvcpus = 0\n',
            "g.toml:3: key 'vcpus': expected a whole number from 1 to 512, not 0",
        ),
        ("guest = 3\n", "g.toml:1: key 'guest': expected a table [guest]"),
        ("[guest]\nmemory = \n", "g.toml:2: not TOML: Invalid value"),
        (
            '[guest]\nmemory = "1G"\nzzz = 1\n',
            "g.toml:3: key 'zzz' unknown in [guest]; expected one of memory, vcpus",
        ),
    ],
)
def test_other_mistakes(text, expected):
    assert message(text, guest) == expected


def test_words_of_a_list():
    read = toml_file.one_of("uniform", "zipf")
    assert read("zipf") == "zipf"
    with pytest.raises(ValueError, match=r"not 'zpif'; did you mean 'zipf'\?"):
        read("zpif")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match="No such file or directory; expected a TOML file"):
        TomlFile.read(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="not text"):
        TomlFile.read(tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("text", "count"), [("16G", 16 << 30), ("1.5T", 3 << 39), ("4096", 4096), ("2MiB", 2 << 20)]
)
def test_sizes(text, count):
    assert parse_bytes(text) == count
    assert parse_bytes(show_bytes(count)) == count


@pytest.mark.parametrize(
    ("text", "ns"), [("100ms", 10**8), ("1h", 3600 * 10**9), ("2.5us", 2500), ("1min", 60 * 10**9)]
)
def test_times(text, ns):
    assert parse_ns(text) == ns


@pytest.mark.parametrize("text", ["", "ten", "10", "-1s", "1 fortnight"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="expected a time"):
        parse_ns(text)


def test_times_are_shown_with_three_digits():
    assert [show_ns(ns) for ns in (12, 1234, 18_000_000, 510e9, 3.6e12)] == [
        "12 ns",
        "1.23 us",
        "18 ms",
        "510 s",
        "3600 s",
    ]
