"""The faults that tests/mutants.py plants: where they can be made, found in the source by itself.

A fault is an edit of one file of the template. Places are found in the syntax tree and edited in
the text, so that comments stay. Wording is no behaviour: docstrings, f-strings, texts with a blank
in them, and what a `raise` says are left alone. So is a literal value in config.yaml: it is the
owner's choice; that the project ignores it is the fault.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import another_value

SWAPPED = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"},
    **{ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "//"},
    **{ast.And: "or", ast.Or: "and", ast.BitOr: "&", ast.BitAnd: "|"},
}
DRAWING = ("rich", "matplotlib")  # how a table or a plot looks is no behaviour, either
# keywords that stop our own mistakes and change nothing where there is none, that matter where the
# system's encoding is another, and that say how a text looks
GUARDS = ("strict", "frozen", "kw_only", "slots", "encoding", "indent", "end")
# a value that the library takes as well; any other text is replaced by one that nothing knows
NEIGHBOURS = {"nf4": "fp4", "right": "left", "no": "steps", "auto": "float32", "utf-8": "utf-16"}
# faults that somebody once planted by hand; each must go through nowhere
PLANTED = {
    "lora_alpha is ignored": (r"\*\*settings\)", '**settings | {"lora_alpha": 8})'),
    "lora_dropout is ignored": (r"\*\*settings\)", '**settings | {"lora_dropout": 0.0})'),
    "r is ignored": (r"\*\*settings\)", '**settings | {"r": 8})'),
    "fp4 for nf4": (r'bnb_4bit_quant_type="nf4"', 'bnb_4bit_quant_type="fp4"'),
    "no double quantization": (r"use_double_quant=True", "use_double_quant=False"),
    "arithmetic in another dtype": (r"compute_dtype=dtype", "compute_dtype=torch.float16"),
    "chat without a generation prompt": (
        r"add_generation_prompt=True, return_tensors",
        "add_generation_prompt=False, return_tensors",
    ),
    "evaluation on the training rows": (
        r'eval_dataset=examples\.get\("evaluation"\)',
        'eval_dataset=examples["train"]',
    ),
    "held-out rows are trained on, too": (
        r"np\.setdiff1d\((np\.arange\(len\(.+\)\)), held_out\)",
        r"\1",
    ),
    "padding on the left": (r'padding_side = "right"', 'padding_side = "left"'),
    "the saved model ends its turns as before": (
        r"\*token_ids, \*before",
        "*before, *token_ids[:0]",
    ),
    "gradients do not reach the adapter": (
        r"model\.enable_input_require_grads\(\)",
        "model.train()",
    ),
    "each token learns itself": (r'\["labels"\]\[:, 1:\], \(0, 1\)', '["labels"], (0, 0)'),
    "tokens weigh by their batch": (r"\.mean\(\)\) \* tokens", ".mean())"),
}


@dataclass(frozen=True)
class Fault:
    """An edit of `file` (relative to the template): bytes `start` to `end` become `new`."""

    kind: str
    file: str
    line: int  # in the file as it is
    scope: int  # the first line of the function around it, 0 for none
    start: int
    end: int
    new: str
    key: str = ""  # the key of config.yaml that it is about

    def broken(self, template: Path) -> str:
        """The whole file with the fault in it, formatted."""
        text = (template / self.file).read_bytes()
        text = text[: self.start] + self.new.encode() + text[self.end :]
        return formatted(text.decode(), template) if self.file.endswith(".py") else text.decode()


def formatted(text: str, template: Path) -> str:
    """As `ruff format` writes it, so that nobody notices a fault by its looks; "" if broken."""
    command = [sys.executable, "-m", "ruff", "format", "--no-cache", "--quiet"]
    command += ["--config", str(template / "pyproject.toml"), "-"]
    run = subprocess.run(command, input=text, capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else ""


def all_faults(template: Path, project: str, keys: dict) -> list[Fault]:
    """Every fault that can be made in templates/ and in the generated project, but not its tests.

    Args:
        project: the name of the project's folder in the template.
        keys: those of config.yaml, with a value of each.

    Raises:
        ValueError: the code has nothing for the pattern of a fault in `PLANTED`.
    """
    found, own = {}, set()
    files = sorted([*(template / "templates").rglob("*"), *(template / project).rglob("*")])
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts:
            text = path.read_text(encoding="utf-8")
            own |= set(re.findall(r"^\s*(?:def|class) (\w+)", text, re.M))
    for path in files:
        name = path.relative_to(template).as_posix()
        if name.startswith(f"{project}/tests/") or "__pycache__" in name:
            continue
        if path.suffix == ".py" or name.endswith(".py{% endif %}"):
            made = faults_of_python(name, path.read_bytes(), keys, own)
        elif path.suffix == ".yaml" or name.endswith(".yaml{% endif %}"):
            made = faults_of_yaml(name, path.read_text(encoding="utf-8"))
        else:
            continue
        for fault in made:
            found.setdefault((name, fault.start, fault.end, fault.new), fault)
    missing = PLANTED.keys() - {fault.kind.partition(": ")[2] for fault in found.values()}
    if missing:
        raise ValueError(f"no code is as PLANTED in faults.py says for {sorted(missing)}; adapt it")
    return list(found.values())


def faults_of_yaml(name: str, text: str) -> Iterator[Fault]:
    """Conditions of Jinja negated, and keys dropped where the file is no list of choices."""

    def fault(kind: str, start: int, end: int, new: str) -> Fault:
        before = text[:start].encode()
        line = text.count("\n", 0, start) + 1
        return Fault(kind, name, line, 0, len(before), len(text[:end].encode()), new)

    for tag in re.finditer(r"\{%.*?%\}|\{\{.*?\}\}", text, re.S):
        for found in re.finditer(r"\bif\s+(.+?)\s*(?=\belse\b|-?[%}]\})", tag[0], re.S):
            span = [tag.start() + offset for offset in found.span(1)]
            yield fault("condition negated", *span, f"not ({found[1]})")
        for found in re.finditer("==|!=", tag[0]):
            span = [tag.start() + offset for offset in found.span()]
            yield fault("comparison changed", *span, {"==": "!=", "!=": "=="}[found[0]])
    if "config.yaml" not in name:
        for found in re.finditer(r"^ *[a-z_]+: \S.*\n", text, re.M):
            yield fault("key dropped", *found.span(), "")


def faults_of_python(name: str, source: bytes, keys: dict, own: set) -> Iterator[Fault]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # one include of Jinja: what it includes is a file of its own
        return
    yield from Places(name, source, keys, own).visit(tree, 0)
    for what, (pattern, new) in PLANTED.items():
        for found in re.finditer(pattern, source.decode()):
            before = source.decode()[: found.start()]
            start, line = len(before.encode()), before.count("\n") + 1
            scope = max((s for s, e in scopes(tree) if s <= line <= e), default=0)
            end = start + len(found[0].encode())
            yield Fault(f"planted: {what}", name, line, scope, start, end, found.expand(new))


def first_line(function: ast.AST) -> int:
    """Where its code object says that it begins: at its first decorator."""
    return min([function.lineno, *(one.lineno for one in function.decorator_list)])


def scopes(tree: ast.AST) -> list[tuple[int, int]]:
    defs = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(first_line(n), n.end_lineno) for n in ast.walk(tree) if isinstance(n, defs)]


def is_prose(node: ast.AST) -> bool:
    """A text for people: an f-string, or one with a blank in it; or made of such."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and " " in node.value
    return isinstance(node, ast.JoinedStr) or any(map(is_prose, ast.iter_child_nodes(node)))


class Places:
    """Walks through one file and says what can be broken where."""

    def __init__(self, name: str, source: bytes, keys: dict, own: set):
        self.name, self.source, self.keys, self.own = name, source, keys, own
        self.looks = names_of_looks(ast.parse(source))
        lengths = [len(line) for line in source.split(b"\n")]
        self.starts = [sum(lengths[:n]) + n for n in range(len(lengths))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def fault(self, kind: str, node, scope: int, new: str, span=None, key: str = "") -> Fault:
        return Fault(kind, self.name, node.lineno, scope, *(span or self.span(node)), new, key)

    def visit(self, node: ast.AST, scope: int) -> Iterator[Fault]:
        """The faults at `node` and below it; `scope` is the first line of the function around."""
        is_guard = isinstance(node, ast.keyword) and node.arg in GUARDS
        if is_guard or isinstance(node, (ast.Raise, ast.JoinedStr)):
            return
        made = getattr(self, f"at_{type(node).__name__}", None)
        if made:
            yield from made(node, scope)
        if isinstance(node, ast.Call) and root(node) in self.looks:
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scope = first_line(node)
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from self.visit(child, scope)

    def at_If(self, node, scope):
        yield self.fault("condition negated", node, scope, *self.negated(node.test))

    at_IfExp = at_While = at_If

    def at_comprehension(self, node, scope):
        for test in node.ifs:
            yield self.fault("condition negated", test, scope, *self.negated(test))

    def negated(self, test: ast.AST) -> tuple[str, tuple[int, int]]:
        return f"(not ({self.text(test)}))", self.span(test)

    def at_Compare(self, node, scope):
        for left, operator, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        ):
            span = self.span(left)[1], self.span(right)[0]
            new = f" {SWAPPED[type(operator)]} "
            # brackets around an operand lie between the two
            between = self.source[slice(*span)].decode()
            new = ")" * between.count(")") + new + "(" * between.count("(")
            yield self.fault("comparison changed", left, scope, new, span)

    def at_BoolOp(self, node, scope):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from self.between(node.op, left, right, scope, "and, or swapped")

    def at_BinOp(self, node, scope):
        texts = (ast.JoinedStr, ast.List, ast.ListComp, ast.Dict, ast.Tuple)
        sides = (node.left, node.right)
        if type(node.op) in SWAPPED and not any(
            isinstance(side, texts) or is_text(side) for side in sides
        ):
            yield from self.between(node.op, *sides, scope, "arithmetic changed")

    def between(self, operator, left, right, scope, kind):
        start, end = self.span(left)[1], self.span(right)[0]
        between = self.source[start:end].decode()
        if between.count("(") == between.count(")") == 0:
            yield self.fault(kind, left, scope, f" {SWAPPED[type(operator)]} ", (start, end))

    def at_Constant(self, node, scope):
        if isinstance(node.value, bool):
            yield self.fault("value changed", node, scope, str(not node.value))
        elif isinstance(node.value, (int, float)):
            more = node.value + 1 if abs(node.value) < 8 else node.value * 2
            yield self.fault("value changed", node, scope, repr(more))

    def at_Return(self, node, scope):
        if node.value and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield self.fault("nothing returned", node, scope, "return None")

    def at_Break(self, node, scope):
        yield self.fault("break, continue swapped", node, scope, "continue")

    def at_Continue(self, node, scope):
        yield self.fault("break, continue swapped", node, scope, "break")

    def at_Expr(self, node, scope):
        if isinstance(node.value, ast.Call) and not is_prose(node.value):
            yield self.fault("statement dropped", node, scope, "pass")

    def at_Assign(self, node, scope):
        if all(
            isinstance(target, (ast.Attribute, ast.Subscript))
            and root(target) not in {"self", *self.looks}
            for target in node.targets
        ):
            yield self.fault("statement dropped", node, scope, "pass")

    def at_AugAssign(self, node, scope):
        yield self.fault("statement dropped", node, scope, "pass")

    def at_AnnAssign(self, node, scope):
        if node.value is not None and is_text(node.value):
            yield from self.other_text(node.value, scope)

    def at_Call(self, node, scope):
        """Keywords dropped and changed; keys of config.yaml that never arrive."""
        for keyword in node.keywords:
            is_left = keyword.arg is None or keyword.arg in GUARDS or is_prose(keyword.value)
            if is_left or root(node) in self.looks:
                continue
            if self.text(node.func).split(".")[-1] not in self.own:  # ours would just miss it
                start, end = self.span(keyword)
                if comma := re.compile(rb"\s*,\s*").match(self.source, end):
                    end = comma.end()
                elif comma := re.search(rb",\s*$", self.source[:start]):
                    start = comma.start()
                span = start, end
                yield self.fault("keyword dropped", keyword, scope, "", span)
            if is_text(keyword.value):
                yield from self.other_text(keyword.value, scope)
        if self.text(node.func) in ("yaml.safe_load", "yaml.load"):
            for key in self.keys:
                new = f"{{k: v for k, v in {self.text(node)}.items() if k != {key!r}}}"
                yield self.fault("key ignored", node, scope, new, key=key)

    def other_text(self, node, scope):
        new = NEIGHBOURS.get(node.value, f"{node.value}_" if node.value else "other")
        yield self.fault("value changed", node, scope, repr(new).replace("'", '"'))

    def at_Attribute(self, node, scope):
        """A key of config.yaml, with another value where it is used."""
        owner = self.text(node.value)
        if isinstance(node.ctx, ast.Load) and owner.endswith("args") and node.attr in self.keys:
            new = another_value(self.keys[node.attr])
            yield self.fault("key ignored", node, scope, repr(new), key=node.attr)


def root(node: ast.AST) -> str:
    """The first name of `a.b(c).d`; "" if it begins otherwise."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def names_of_looks(tree: ast.AST) -> set[str]:
    """What is imported of the libraries that draw, and what is made of it in this file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = {(one.asname or one.name): one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = {(one.asname or one.name): node.module or "" for one in node.names}
        else:
            continue
        names |= {name for name, module in modules.items() if module.split(".")[0] in DRAWING}
    for node in ast.walk(tree):
        for target, value in given(node):
            if root(value) in names:
                names |= {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}
    return names


def given(node: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    """What an assignment or a loop gives a name, each with its value."""
    if isinstance(node, ast.For):
        return [(node.target, node.iter)]
    if not isinstance(node, ast.Assign):
        return []
    (target, *_), value = node.targets, node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
