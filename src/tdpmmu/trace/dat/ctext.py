"""Read the C of a ``print fmt``: a format string and the expressions it is filled with.

Only what formats of events are made of: numbers, strings, ``REC->field``, operators, casts, and
calls such as ``__print_flags``.  All else is :class:`NotUnderstood`, and the event is then shown as
a list of its fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<char>'(?:[^'\\]|\\.)')
    | (?P<number>0[xX][0-9a-fA-F]+|\d+)[uUlL]*
    | (?P<field>REC->(?P<name>\w+))
    | (?P<word>[A-Za-z_]\w*)
    | (?P<op><<|>>|<=|>=|==|!=|&&|\|\||->|[-+*/%&|^~!<>?:()\[\]{},.])
    )""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\", "'": "'", "0": "\0", "r": "\r"}
_BINARY = {
    "||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, ">": 7, "<=": 7, ">=": 7,
    "<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10,
}  # fmt: skip
_UNARY = frozenset("-+!~&*")
_TYPE_WORD = re.compile(
    r"unsigned|signed|long|int|short|char|void|const|struct|enum|union|bool|\w+_t|_{0,2}[us](8|16|32|64)"
)
_DEEPEST = 100


class NotUnderstood(Exception):
    """The format uses something that is not read here."""


@dataclass(frozen=True, slots=True)
class Number:
    """A literal."""

    value: int


@dataclass(frozen=True, slots=True)
class Text:
    """A string literal, or several in a row."""

    value: str


@dataclass(frozen=True, slots=True)
class FieldOf:
    """``REC->name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Unary:
    """``op`` before an operand."""

    op: str
    operand: Node


@dataclass(frozen=True, slots=True)
class Binary:
    """``op`` between two operands."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Choice:
    """``condition ? yes : no``."""

    condition: Node
    yes: Node
    no: Node


@dataclass(frozen=True, slots=True)
class Cast:
    """``(kind)operand``."""

    kind: str
    operand: Node


@dataclass(frozen=True, slots=True)
class Index:
    """``base[index]``."""

    base: Node
    index: Node


@dataclass(frozen=True, slots=True)
class Call:
    """``name(arguments)``."""

    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Braces:
    """``{ a, b }``."""

    items: tuple[Node, ...]


Node = Number | Text | FieldOf | Unary | Binary | Choice | Cast | Index | Call | Braces


def parse(print_fmt: str) -> tuple[str, list[Node]]:
    """The format string and what goes into it."""
    parser = _Parser(print_fmt)
    nodes = parser.arguments()
    parser.end()
    first = nodes[0] if nodes else None
    if not isinstance(first, Text):
        raise NotUnderstood("no format string")
    return first.value, nodes[1:]


class _Parser:
    """Operator precedence, by recursion."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        self._next = 0
        self._depth = 0
        place = 0
        text = text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise NotUnderstood(text[place : place + 20])
            kind = match.lastgroup or ""
            kind = "field" if match["field"] else kind
            self._tokens.append((kind, match["name"] or match[kind]))
            place = match.end()

    def arguments(self) -> list[Node]:
        """Expressions with commas between them."""
        nodes = [self.expression()]
        while self._take(","):
            nodes.append(self.expression())
        return nodes

    def end(self) -> None:
        """Nothing may follow."""
        if self._next != len(self._tokens):
            raise NotUnderstood(self._tokens[self._next][1])

    def expression(self) -> Node:
        """Up to a comma, or what closes."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotUnderstood("too deep")
        node = self._binary(1)
        if self._take("?"):
            yes = self.expression()
            self._expect(":")
            node = Choice(node, yes, self.expression())
        self._depth -= 1
        return node

    def _binary(self, weakest: int) -> Node:
        left = self._unary()
        while True:
            kind, op = self._peek()
            strength = _BINARY.get(op, 0) if kind == "op" else 0
            if strength < weakest:
                return left
            self._next += 1
            left = Binary(op, left, self._binary(strength + 1))

    def _unary(self) -> Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotUnderstood("too deep")
        kind, text = self._peek()
        if kind == "op" and text in _UNARY:
            self._next += 1
            node: Node = Unary(text, self._unary())
        elif kind == "op" and text == "(" and (cast := self._cast()):
            node = Cast(cast, self._unary())
        else:
            node = self._postfix(self._primary())
        self._depth -= 1
        return node

    def _cast(self) -> str:
        """The type in brackets, if that is what comes next."""
        end = self._next + 1
        words: list[str] = []
        while end < len(self._tokens):
            kind, text = self._tokens[end]
            named = kind == "word" and (words or _TYPE_WORD.fullmatch(text))
            if named or (text == "*" and words):
                words.append(text)
            elif text == ")" and words:
                self._next = end + 1
                return " ".join(words)
            else:
                return ""
            end += 1
        return ""

    def _primary(self) -> Node:
        kind, text = self._peek()
        self._next += 1
        if kind == "number":
            octal = len(text) > 1 and text.startswith("0") and text[1] not in "xX"
            return Number(int(text, 8 if octal else 0))
        if kind == "char":
            return Number(ord(_unescape(text)))
        if kind == "field":
            return FieldOf(text)
        if kind == "string":
            value = _unescape(text)
            while self._peek()[0] == "string":
                value += _unescape(self._peek()[1])
                self._next += 1
            return Text(value)
        if kind == "word":
            return self._word(text)
        if text == "(":
            node = self.expression()
            self._expect(")")
            return node
        if text == "{":
            return Braces(tuple(self._until("}")))
        raise NotUnderstood(text)

    def _word(self, name: str) -> Node:
        if name == "sizeof":
            raise NotUnderstood(name)
        self._expect("(")
        return Call(name, tuple(self._until(")")))

    def _until(self, closing: str) -> list[Node]:
        """Arguments, perhaps none, perhaps with a comma after the last."""
        nodes: list[Node] = []
        while not self._take(closing):
            # __get_str(name) and its like have a bare name in them.
            kind, text = self._peek()
            if kind == "word" and self._tokens[self._next + 1 : self._next + 2] in (
                [("op", ")")],
                [("op", ",")],
            ):
                self._next += 1
                nodes.append(FieldOf(text))
            else:
                nodes.append(self.expression())
            if not self._take(","):
                self._expect(closing)
                break
        return nodes

    def _postfix(self, node: Node) -> Node:
        while self._take("["):
            node = Index(node, self.expression())
            self._expect("]")
        return node

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "end")

    def _take(self, text: str) -> bool:
        if self._peek() == ("op", text):
            self._next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise NotUnderstood(self._peek()[1])


def _unescape(literal: str) -> str:
    inner = literal[1:-1]
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), inner)
