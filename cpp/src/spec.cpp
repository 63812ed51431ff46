#include "spec.hpp"

#include <algorithm>

namespace ev {

namespace {

template <typename T>
const T* find_named(const std::vector<T>& values, const std::string& name) {
  const auto found = std::find_if(values.begin(), values.end(), [&](const T& v) { return v.name == name; });
  return found == values.end() ? nullptr : &*found;
}

}  // namespace

const GraphSpec* BundleSpec::find_graph(const std::string& graph_name) const { return find_named(graphs, graph_name); }

const Schedule* BundleSpec::find_schedule(const std::string& schedule_name) const {
  return find_named(schedules, schedule_name);
}

}  // namespace ev
