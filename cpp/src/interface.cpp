#include "interface.hpp"

#include <algorithm>
#include <map>
#include <sstream>
#include <tuple>

#include "error.hpp"
#include "tables.hpp"

namespace ev {

namespace {

// Far above what any solver keeps; a row of its matrix has two more.
constexpr std::int64_t kMostHistory = 1 << 16;

using Sizes = std::map<std::string, std::int64_t>;

/// An axis of a line with the numbers of the bundle put in: 3, P -> 64, s*h -> "16*h", Lt -> "Lt".
std::variant<std::int64_t, std::string> parse_axis(const std::string& axis, const Sizes& sizes) {
  if (axis.find_first_not_of("0123456789") == std::string::npos) return static_cast<std::int64_t>(std::stoll(axis));
  const std::size_t star = axis.find('*');
  if (star != std::string::npos) return join_text(sizes.at(axis.substr(0, star)), axis.substr(star));
  const auto known = sizes.find(axis);
  if (known != sizes.end()) return known->second;
  return axis;
}

TensorSpec parse_tensor(const char* line, const Sizes& sizes) {
  std::istringstream words(line);
  TensorSpec tensor;
  words >> tensor.name >> tensor.dtype;
  for (std::string axis; words >> axis;) tensor.shape.push_back(parse_axis(axis, sizes));
  return tensor;
}

/// As Python's repr shows a list: `frames uint8 [1, '16*h', '16*w', 3]`.
std::string show_tensor(const TensorSpec& tensor) {
  std::string axes;
  for (const auto& axis : tensor.shape) {
    const auto* name = std::get_if<std::string>(&axis);
    axes += join_text(axes.empty() ? "" : ", ", name ? "'" + *name + "'" : join_text(std::get<std::int64_t>(axis)));
  }
  return join_text(tensor.name, " ", tensor.dtype, " [", axes, "]");
}

/// Same names, dtypes and ranks; a size where one is wanted (or left open), a dynamic axis elsewhere.
bool match_tensors(const std::vector<TensorSpec>& found, const std::vector<TensorSpec>& wanted) {
  if (found.size() != wanted.size()) return false;
  return std::all_of(wanted.begin(), wanted.end(), [&](const TensorSpec& want) {
    const auto same_name = [&](const TensorSpec& tensor) { return tensor.name == want.name; };
    const auto have = std::find_if(found.begin(), found.end(), same_name);
    if (have == found.end() || have->dtype != want.dtype || have->shape.size() != want.shape.size()) return false;
    for (std::size_t i = 0; i < want.shape.size(); ++i) {
      if (have->shape[i] != want.shape[i] && !std::holds_alternative<std::string>(have->shape[i])) return false;
    }
    return true;
  });
}

bool starts_with(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

using CacheKind = std::tuple<std::string, std::string, std::size_t>;

std::vector<CacheKind> cache_kinds(const std::vector<TensorSpec>& tensors) {
  std::vector<CacheKind> kinds;
  for (const TensorSpec& tensor : tensors) {
    const std::string name = starts_with(tensor.name, "next_") ? tensor.name.substr(5) : tensor.name;
    if (starts_with(name, "cache_")) kinds.emplace_back(name, tensor.dtype, tensor.shape.size());
  }
  return kinds;
}

void check_side(const std::string& field, const std::string& prefix, const std::vector<const char*>& expected,
                const std::vector<TensorSpec>& found, const Sizes& sizes, const Fields& fields) {
  std::vector<TensorSpec> others, wanted;
  std::vector<std::string> caches;
  for (const TensorSpec& tensor : found) {
    if (starts_with(tensor.name, prefix)) {
      caches.push_back(tensor.name);
    } else {
      others.push_back(tensor);
    }
  }
  bool has_caches = false;
  for (const char* line : expected) {
    if (std::string(line) == "caches") {
      has_caches = true;
    } else {
      wanted.push_back(parse_tensor(line, sizes));
    }
  }
  if (!match_tensors(others, wanted)) {
    Json shown = Json::array();
    for (const TensorSpec& tensor : others) shown.push_back(show_tensor(tensor));
    std::string asked;
    for (const TensorSpec& tensor : wanted) asked += (asked.empty() ? "" : ", ") + show_tensor(tensor);
    fields.refuse(field, shown, asked);
  }
  for (std::size_t i = 0; i < caches.size(); ++i) {
    if (!has_caches) fields.refuse(field, caches, "no caches");
    if (caches[i] != join_text(prefix, i)) {
      fields.refuse(field, caches, join_text(prefix, "0, ", prefix, "1 ... in this order"));
    }
  }
}

/// A whole number that only a graph's input says: the first or the last axis of it.
std::int64_t axis_of(const BundleSpec& spec, const std::string& graph, const std::string& name, bool last,
                     const Fields& fields) {
  for (const TensorSpec& tensor : spec.find_graph(graph)->inputs) {
    if (tensor.name != name || tensor.shape.empty()) continue;
    const auto* size = std::get_if<std::int64_t>(last ? &tensor.shape.back() : &tensor.shape.front());
    if (size != nullptr) return *size;
  }
  fields.refuse("graphs." + graph + ".inputs", nullptr,
                join_text("an input \"", name, "\" whose ", last ? "last" : "first", " axis is a whole number"));
}

using Interfaces = std::vector<std::pair<std::string, const Interface*>>;

/// The graphs of the bundle's family, and the interface of each of its graphs `schedule_...`.
Interfaces interfaces_of(const BundleSpec& spec, const Fields& fields) {
  const FamilyGraphs* family = nullptr;
  std::string families;
  for (const FamilyGraphs& one : family_graphs()) {
    families += join_text(families.empty() ? "" : ", ", one.family);
    if (spec.family == one.family) family = &one;
  }
  if (family == nullptr) fields.refuse("family", spec.family, "one of " + families);
  Interfaces table;
  for (const Interface& interface : family->graphs) table.emplace_back(interface.graph, &interface);
  for (const Interface& interface : family->control) {
    if (spec.conditioning != "control") break;
    const auto same = [&](const auto& entry) { return entry.first == interface.graph; };
    const auto found = std::find_if(table.begin(), table.end(), same);
    if (found == table.end()) {
      table.emplace_back(interface.graph, &interface);
    } else {
      found->second = &interface;
    }
  }
  for (const GraphSpec& graph : spec.graphs) {
    if (starts_with(graph.name, "schedule_")) table.emplace_back(graph.name, &schedule_interface());
  }
  return table;
}

/// The graphs that the family needs are there, and no others.
void check_names(const Interfaces& table, const BundleSpec& spec, const Fields& fields) {
  Json names = Json::array();
  for (const GraphSpec& graph : spec.graphs) names.push_back(graph.name);
  std::string known;
  for (const auto& [name, interface] : table) {
    known += (known.empty() ? "" : ", ") + name;
    if (spec.find_graph(name) == nullptr && !interface->is_optional) {
      fields.refuse("graphs", names, join_text("a graph \"", name, "\" among them"));
    }
  }
  for (const GraphSpec& graph : spec.graphs) {
    const auto is_it = [&](const auto& entry) { return entry.first == graph.name; };
    if (std::any_of(table.begin(), table.end(), is_it)) continue;
    fields.refuse("graphs", graph.name, join_text("graphs of the family ", spec.family, ": ", known));
  }
}

}  // namespace

void check_interfaces(const BundleSpec& spec, const Fields& fields) {
  const Interfaces table = interfaces_of(spec, fields);
  check_names(table, spec, fields);
  const std::int64_t text_dim = axis_of(spec, "transformer", "text", true, fields);
  const std::int64_t history = axis_of(spec, "solver_step", "history", false, fields);
  if (history < 0 || history > kMostHistory) {
    fields.refuse("graphs.solver_step.inputs", history, join_text("a history of 0 to ", kMostHistory, " rows"));
  }
  const Geometry& geometry = spec.geometry;
  const Sizes sizes = {{"r", geometry.temporal_ratio},
                       {"s", geometry.size_multiple()},
                       {"P", geometry.patch_dim},
                       {"Pc", geometry.clean_dim},
                       {"Dt", text_dim},
                       {"K", history},
                       {"S", history + 1},
                       {"S1", history + 2}};
  for (const auto& [name, interface] : table) {
    const GraphSpec* graph = spec.find_graph(name);
    if (graph == nullptr) continue;
    check_side("graphs." + name + ".inputs", "cache_", interface->inputs, graph->inputs, sizes, fields);
    check_side("graphs." + name + ".outputs", "next_cache_", interface->outputs, graph->outputs, sizes, fields);
  }
  for (const std::string vae : {"vae_encoder", "vae_decoder"}) {
    const GraphSpec& first = *spec.find_graph(vae + "_first");
    const GraphSpec& next = *spec.find_graph(vae + "_next");
    const std::vector<CacheKind> taken = cache_kinds(next.inputs);
    if (cache_kinds(first.outputs) != taken || cache_kinds(next.outputs) != taken) {
      Json names = Json::array();
      for (const CacheKind& kind : taken) names.push_back(std::get<0>(kind));
      fields.refuse("graphs." + vae + "_next.inputs", names, "the caches that both give");
    }
  }
}

}  // namespace ev
