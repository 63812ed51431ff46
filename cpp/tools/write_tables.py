"""Writes cpp/src/tables.hpp: the tables that both hosts share, from the Python host, which is their one home.

Graph inputs and outputs come from editverse_rt/bundle/interface.py, the ranges of options from
editverse_rt/request/options.py.

python cpp/tools/write_tables.py         # cpp/tests/test_tables.py checks that the file is up to date
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from editverse_rt.bundle.interface import FAMILIES, Interface, interfaces_of
from editverse_rt.request.options import DEFAULT_LENGTH, OPTIONS, Option

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "cpp" / "src" / "tables.hpp"

_HEAD = """\
// Written by cpp/tools/write_tables.py from editverse_rt/bundle/interface.py and editverse_rt/request/options.py;
// change those.
#pragma once

#include <limits>
#include <vector>

namespace ev {

/// Inputs and outputs of one graph as lines "name dtype axes"; interface.py says what the letters mean.
struct Interface {
  const char* graph;
  bool is_optional;
  std::vector<const char*> inputs;
  std::vector<const char*> outputs;
};

/// The graphs of one family, without those named `schedule_...`. control: those that take the place of others, or are
/// added, where the conditioning is "control".
struct FamilyGraphs {
  const char* family;
  std::vector<Interface> graphs;
  std::vector<Interface> control;
};

/// The range of one number of a request. minimum, maximum: inclusive; above: exclusive. expected: as an error says it.
struct OptionRange {
  const char* name;
  double minimum;
  double above;
  double maximum;
  const char* expected;
};

/// The values that a text of a request may have.
struct OptionChoices {
  const char* name;
  std::vector<const char*> choices;
  const char* expected;
};

// clang-format off
inline const std::vector<FamilyGraphs>& family_graphs() {
  static const std::vector<FamilyGraphs> table = {
"""


def text_of(value: str) -> str:
    """A C string literal."""
    return json.dumps(value, ensure_ascii=True)


def write_lines(lines: tuple[str, ...]) -> str:
    return "{" + ", ".join(map(text_of, lines)) + "}"


def write_interface(name: str, interface: Interface) -> str:
    optional = "true" if interface.optional else "false"
    return (
        f"{{{text_of(name)}, {optional},\n"
        f"       {write_lines(interface.inputs)},\n"
        f"       {write_lines(interface.outputs)}}}"
    )


def write_range(option: Option) -> str:
    def number(value: float | None, infinity: str) -> str:
        return infinity if value is None else repr(float(value))

    return (
        f"  {{{text_of(option.name)}, {number(option.minimum, '-kUnbounded')}, "
        f"{number(option.above, '-kUnbounded')}, {number(option.maximum, 'kUnbounded')}, "
        f"{text_of(option.expected)}}},"
    )


def make_header() -> str:
    """The text of tables.hpp."""
    lines = [_HEAD.rstrip("\n")]
    for family, graphs in FAMILIES.items():
        lines.append(f"    {{{text_of(family)}, {{")
        lines += [f"      {write_interface(name, interface)}," for name, interface in graphs.items()]
        lines.append("    }, {")
        for name, interface in interfaces_of(family, "control", ()).items():
            if graphs.get(name) != interface:
                lines.append(f"      {write_interface(name, interface)},")
        lines.append("    }},")
    lines += ["  };", "  return table;", "}", ""]
    schedule = interfaces_of(next(iter(FAMILIES)), "none", ("schedule_",))["schedule_"]
    lines.append("/// Of every graph named `schedule_...`.")
    lines.append("inline const Interface& schedule_interface() {")
    lines.append(f"  static const Interface schedule = {write_interface('schedule_', schedule)};")
    lines += ["  return schedule;", "}", ""]
    lines.append("constexpr double kUnbounded = std::numeric_limits<double>::infinity();")
    lines.append("constexpr OptionRange kOptionRanges[] = {")
    lines += [write_range(option) for option in OPTIONS if option.kind in ("int", "float")]
    lines += ["};", ""]
    lines.append("inline const std::vector<OptionChoices>& option_choices() {")
    lines.append("  static const std::vector<OptionChoices> table = {")
    lines += [
        f"    {{{text_of(option.name)}, {write_lines(option.choices)}, {text_of(option.expected)}}},"
        for option in OPTIONS
        if option.kind == "choice"
    ]
    lines += ["  };", "  return table;", "}", ""]
    lines.append("/// Of a request that does not say its length.")
    lines.append(f"constexpr const char* kDefaultLength = {text_of(DEFAULT_LENGTH)};")
    lines += ["// clang-format on", "", "}  // namespace ev"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes --help and nothing else
    HEADER.write_text(make_header(), encoding="utf-8")
