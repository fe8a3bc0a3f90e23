"""Format an event as its ``print fmt`` says: what tracefs and ``trace-cmd report`` print."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from tdpmmu.trace.dat.ctext import (
    Binary,
    Braces,
    Call,
    Cast,
    Choice,
    FieldOf,
    Index,
    Node,
    NotUnderstood,
    Number,
    Text,
    Unary,
    parse,
)
from tdpmmu.trace.dat.formats import Format
from tdpmmu.trace.dat.symbols import Symbols
from tdpmmu.trace.dat.values import EventValues, Value

_CONVERSION = re.compile(
    r"%(?:(?P<percent>%)|(?P<flags>[-+ #0]*)(?P<width>\d+|\*)?(?:\.(?P<precision>\d+|\*)?)?"
    r"(?P<length>hh|h|ll|l|L|q|z|t|j)?(?P<kind>[diouxXcspn])(?P<pointer>[A-Za-z]\w*)?)"
)
_BITS = {"hh": 8, "h": 16, None: 32}
_WIDTHS = {"8": 8, "16": 16, "32": 32, "64": 64, "char": 8, "short": 16, "int": 32, "unsigned": 32}
_SIGNED = frozenset({"signed", "int", "long", "short", "char"})

Part = Callable[[EventValues], Value]


def printer(fmt: Format, symbols: Symbols) -> Callable[[EventValues], str]:
    """What turns the values of this event into text; never fails."""
    try:
        text, nodes = parse(fmt.print_fmt)
        parts = _Compiler(fmt, symbols).parts(text, nodes)
    except NotUnderstood:
        return list_fields

    def print_event(values: EventValues) -> str:
        try:
            return "".join([part(values) for part in parts])
        except (NotUnderstood, TypeError, ValueError, IndexError, ZeroDivisionError):
            return list_fields(values)

    return print_event


def list_fields(values: EventValues) -> str:
    """``name=value`` for each field of the event's own."""
    return " ".join(
        f"{name}={_shown(values.value(name))}"
        for name in values.format.fields
        if not name.startswith("common_")
    )


def _shown(value: Value) -> str:
    return f"ARRAY[{value.hex()}]" if isinstance(value, bytes) else str(value)


class _Compiler:
    """Expressions as closures over the event's values."""

    def __init__(self, fmt: Format, symbols: Symbols) -> None:
        self._format = fmt
        self._symbols = symbols

    def parts(self, text: str, nodes: list[Node]) -> list[Callable[[EventValues], str]]:
        """The pieces of the formatted text, one after the other."""
        parts: list[Callable[[EventValues], str]] = []
        left = iter(nodes)
        place = 0
        try:
            for match in _CONVERSION.finditer(text):
                _literal(parts, text[place : match.start()])
                place = match.end()
                if match["percent"]:
                    _literal(parts, "%")
                    continue
                width = precision = None
                if match["width"] == "*":
                    width = self._expression(next(left))
                if match["precision"] == "*":
                    precision = self._expression(next(left))
                parts.append(self._conversion(match, width, precision, next(left)))
        except StopIteration:
            raise NotUnderstood("too few arguments") from None
        if "%" in re.sub(_CONVERSION, "", text):
            raise NotUnderstood(text)
        _literal(parts, text[place:])
        return parts

    def _conversion(
        self, match: re.Match[str], width: Part | None, precision: Part | None, node: Node
    ) -> Callable[[EventValues], str]:
        kind, pointer = match["kind"], match["pointer"] or ""
        argument = self._expression(node)
        flags = match["flags"]
        fixed_width = int(match["width"]) if (match["width"] or "*") != "*" else 0
        fixed_precision = int(match["precision"]) if (match["precision"] or "*") != "*" else None
        if kind == "p" and pointer[:1] in ("s", "S", "f", "F", "B"):
            symbols = self._symbols
            named = symbols.place if pointer[0] in ("S", "F", "B") else symbols.name
            return lambda values: named(_number(argument(values)))
        literal = pointer if kind != "p" else ""
        if kind == "p" and pointer:
            raise NotUnderstood(f"%p{pointer}")
        if kind == "n":
            raise NotUnderstood("%n")
        bits = _BITS.get(match["length"], 64)

        def convert(values: EventValues) -> str:
            size = fixed_width if width is None else _number(width(values))
            digits = fixed_precision if precision is None else _number(precision(values))
            return _format(kind, flags, size, digits, bits, argument(values)) + literal

        return convert

    def _expression(self, node: Node) -> Part:
        match node:
            case Number(value):
                return lambda _: value
            case Text(text):
                return lambda _: text
            case FieldOf(name):
                if name not in self._format.fields:
                    raise NotUnderstood(name)
                return lambda values: values.value(name)
            case Unary("&", FieldOf() as field):
                return self._expression(field)
            case Unary(op, operand):
                return self._unary(op, self._expression(operand))
            case Binary(op, left, right):
                return _binary(op, self._expression(left), self._expression(right))
            case Choice(condition, yes, no):
                test, one, other = map(self._expression, (condition, yes, no))
                return lambda values: one(values) if test(values) else other(values)
            case Cast(kind, operand):
                return _cast(kind, self._expression(operand))
            case Index(FieldOf(name), index):
                at = self._expression(index)
                if name not in self._format.fields:
                    raise NotUnderstood(name)
                return lambda values: values.items(name)[_number(at(values))]
            case Call(name, arguments):
                return self._call(name, arguments)
        raise NotUnderstood(str(node))

    def _unary(self, op: str, operand: Part) -> Part:
        if op not in _UNARY:
            raise NotUnderstood(op)
        apply = _UNARY[op]
        return lambda values: apply(_number(operand(values)))

    def _call(self, name: str, arguments: tuple[Node, ...]) -> Part:
        if name in ("__get_str", "__get_rel_str") and isinstance(arguments[0], FieldOf):
            return self._expression(arguments[0])
        if name in ("__get_dynamic_array", "__get_rel_dynamic_array"):
            return self._expression(arguments[0])
        if name in ("__get_dynamic_array_len", "__get_rel_dynamic_array_len"):
            match arguments[0]:
                case FieldOf(field) if field in self._format.fields:
                    return lambda values: len(values.raw(field))
        if name == "__builtin_expect":
            return self._expression(arguments[0])
        if name in ("__print_flags", "__print_flags_u64"):
            return self._flags(arguments)
        if name in ("__print_symbolic", "__print_symbolic_u64"):
            return self._symbolic(arguments)
        if name in ("__print_hex", "__print_hex_str") and len(arguments) == 2:
            return self._hex(arguments, " " if name == "__print_hex" else "")
        if name == "__print_array" and len(arguments) == 3:
            return self._array(arguments)
        raise NotUnderstood(name)

    def _pairs(self, nodes: tuple[Node, ...]) -> list[tuple[int, str]]:
        """``{ number, "text" }`` for each; the numbers are constants."""
        pairs = []
        nothing = EventValues(self._format, b"", "little")
        for node in nodes:
            match node:
                case Braces((key, Text(text))):
                    pairs.append((_number(self._expression(key)(nothing)), text))
                case Braces(()) | Braces((_, Number(0))):
                    pass  # the end of the list
                case _:
                    raise NotUnderstood("a list of names")
        return pairs

    def _flags(self, arguments: tuple[Node, ...]) -> Part:
        value = self._expression(arguments[0])
        between = arguments[1].value if isinstance(arguments[1], Text) else ""
        pairs = self._pairs(arguments[2:])

        def flags(values: EventValues) -> str:
            left = _number(value(values)) & (1 << 64) - 1
            names = []
            for mask, name in pairs:
                if left and mask & left == mask:
                    names.append(name)
                    left &= ~mask
            if left:
                names.append(f"{left:#x}")
            return between.join(names)

        return flags

    def _symbolic(self, arguments: tuple[Node, ...]) -> Part:
        value = self._expression(arguments[0])
        names: dict[int, str] = {}
        for key, name in self._pairs(arguments[1:]):
            names.setdefault(key, name)

        def symbolic(values: EventValues) -> str:
            number = _number(value(values))
            return names.get(number) or f"{number & (1 << 64) - 1:#x}"

        return symbolic

    def _hex(self, arguments: tuple[Node, ...], between: str) -> Part:
        data, length = map(self._expression, arguments)
        return lambda values: between.join(
            f"{byte:02x}" for byte in _bytes(data(values))[: _number(length(values))]
        )

    def _array(self, arguments: tuple[Node, ...]) -> Part:
        data, length, item = map(self._expression, arguments)

        def array(values: EventValues) -> str:
            raw, size = _bytes(data(values)), max(_number(item(values)), 1)
            numbers = [
                int.from_bytes(raw[i : i + size], values.order)
                for i in range(0, min(len(raw), size * _number(length(values))), size)
            ]
            return "{" + ",".join(f"{number:#x}" for number in numbers) + "}"

        return array


_UNARY: dict[str, Callable[[int], int]] = {
    "-": operator.neg,
    "+": operator.pos,
    "~": operator.invert,
    "!": lambda value: int(not value),
}


def _divide(left: int, right: int) -> int:
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _shift(left: int, right: int) -> int:
    if not 0 <= right < 64:
        raise NotUnderstood("a shift")
    return left << right


_BINARY: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "%": lambda left, right: left - right * _divide(left, right),
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": _shift,
    ">>": lambda left, right: left >> min(max(right, 0), 64),
    "==": lambda left, right: int(left == right),
    "!=": lambda left, right: int(left != right),
    "<": lambda left, right: int(left < right),
    ">": lambda left, right: int(left > right),
    "<=": lambda left, right: int(left <= right),
    ">=": lambda left, right: int(left >= right),
    "&&": lambda left, right: int(bool(left and right)),
    "||": lambda left, right: int(bool(left or right)),
}


def _binary(op: str, left: Part, right: Part) -> Part:
    apply = _BINARY[op]
    return lambda values: apply(_number(left(values)), _number(right(values)))


def _cast(kind: str, operand: Part) -> Part:
    if "*" in kind:
        return operand
    words = kind.split()
    digits = re.sub(r"\D", "", words[-1])
    bits = _WIDTHS.get(digits or words[-1], 64)
    signed = words[0] in _SIGNED or words[-1].strip("_").startswith("s")
    mask, sign = (1 << bits) - 1, 1 << bits - 1

    def cast(values: EventValues) -> Value:
        value = operand(values)
        if not isinstance(value, int):
            return value
        value &= mask
        return value - (1 << bits) if signed and value & sign else value

    return cast


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise NotUnderstood("expected a number")
    return value


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise NotUnderstood("expected bytes")
    return value.encode() if isinstance(value, str) else value


def _literal(parts: list[Callable[[EventValues], str]], text: str) -> None:
    if text:
        parts.append(lambda _: text)


def _format(kind: str, flags: str, width: int, digits: int | None, bits: int, value: Value) -> str:
    """One conversion of printf."""
    if kind == "s":
        if not isinstance(value, str):
            raise NotUnderstood("expected a string")
        text = value if digits is None else value[:digits]
    elif kind == "c":
        text = chr(_number(value) & 0xFF)
    elif kind == "p":
        text = f"{_number(value) & (1 << 64) - 1:#x}"
    else:
        text = _integer(kind, flags, width, digits, bits, _number(value))
    if "-" in flags or width < 0:
        return text.ljust(abs(width))
    return text.rjust(width)


def _integer(kind: str, flags: str, width: int, digits: int | None, bits: int, value: int) -> str:
    value &= (1 << bits) - 1
    if kind in "di" and value >> bits - 1:
        value -= 1 << bits
    sign = "-" if value < 0 else "+" if "+" in flags and kind in "di" else ""
    if not sign and " " in flags and kind in "di":
        sign = " "
    number = abs(value)
    text = f"{number:{kind if kind in 'oxX' else 'd'}}"
    if "#" in flags and kind in "xX":  # of 0, too, unlike in user space
        sign += "0" + kind
    if digits is not None:
        text = text.rjust(digits, "0")
    elif "0" in flags and "-" not in flags:
        text = text.rjust(width - len(sign), "0")
    return sign + text
