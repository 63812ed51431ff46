#include "interface.hpp"

#include <algorithm>
#include <map>
#include <sstream>
#include <tuple>

#include "error.hpp"

namespace ev {

namespace {

struct Interface {
  const char* graph;
  std::vector<const char*> inputs;
  std::vector<const char*> outputs;
};

// As "name dtype axes": r, P and Dt stand for the bundle's temporal_ratio, patch_dim and text width, other letters
// for dynamic axes. "caches" are the VAE's own, as many as it needs.
const std::vector<Interface>& interfaces() {
  static const std::vector<Interface> table = {
      {"text_encoder", {"ids int64 Lt"}, {"text float32 Lt Dt"}},
      {"vae_encoder_first", {"frames uint8 1 H W 3"}, {"patches float32 1 h w P", "caches"}},
      {"vae_encoder_next", {"frames uint8 r H W 3", "caches"}, {"patches float32 1 h w P", "caches"}},
      {"transformer",
       {"text float32 Lt Dt", "clean float32 Lc P", "noisy float32 Lg P", "layout int64 L", "positions int64 L 4",
        "timestep float32"},
       {"velocity float32 Lg P"}},
      {"solver_step",
       {"sample float32 Lg P", "velocity_cond float32 Lg P", "velocity_uncond float32 Lg P",
        "velocity_prev1 float32 Lg P", "velocity_prev2 float32 Lg P", "guidance float32", "coefficients float32 3"},
       {"sample_next float32 Lg P", "velocity float32 Lg P"}},
      {"noise", {"seed int64", "shape int64 2"}, {"noise float32 N P"}},
      {"vae_decoder_first", {"patches float32 1 h w P"}, {"frames uint8 1 H W 3", "caches"}},
      {"vae_decoder_next", {"patches float32 1 h w P", "caches"}, {"frames uint8 r H W 3", "caches"}},
  };
  return table;
}

using Sizes = std::map<std::string, std::int64_t>;

TensorSpec parse_tensor(const char* line, const Sizes& sizes) {
  std::istringstream words(line);
  TensorSpec tensor;
  words >> tensor.name >> tensor.dtype;
  for (std::string axis; words >> axis;) {
    const auto known = sizes.find(axis);
    if (known != sizes.end()) {
      tensor.shape.emplace_back(known->second);
    } else if (axis.find_first_not_of("0123456789") == std::string::npos) {
      tensor.shape.emplace_back(static_cast<std::int64_t>(std::stoll(axis)));
    } else {
      tensor.shape.emplace_back(axis);
    }
  }
  return tensor;
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
  std::string shown_expected;
  for (const char* line : expected) {
    shown_expected += (shown_expected.empty() ? "" : ", ") + std::string(line);
    if (std::string(line) == "caches") {
      has_caches = true;
    } else {
      wanted.push_back(parse_tensor(line, sizes));
    }
  }
  if (!match_tensors(others, wanted)) {
    Json shown = Json::array();
    for (const TensorSpec& tensor : others) shown.push_back(tensor.name + " " + tensor.dtype);
    for (const auto& [letter, size] : sizes) shown_expected += join_text(", ", letter, " = ", size);
    fields.refuse(field, shown, shown_expected);
  }
  for (std::size_t i = 0; i < caches.size(); ++i) {
    if (!has_caches) fields.refuse(field, caches, "no caches");
    if (caches[i] != join_text(prefix, i)) {
      fields.refuse(field, caches, join_text(prefix, "0, ", prefix, "1 ... in this order"));
    }
  }
}

}  // namespace

void check_interfaces(const BundleSpec& spec, const Fields& fields) {
  for (const Interface& interface : interfaces()) {
    if (spec.find_graph(interface.graph) == nullptr) {
      Json names = Json::array();
      for (const GraphSpec& graph : spec.graphs) names.push_back(graph.name);
      fields.refuse("graphs", names, join_text("a graph \"", interface.graph, "\" among them"));
    }
  }
  const std::int64_t* text_dim = nullptr;
  for (const TensorSpec& tensor : spec.find_graph("transformer")->inputs) {
    if (tensor.name == "text" && !tensor.shape.empty()) text_dim = std::get_if<std::int64_t>(&tensor.shape.back());
  }
  if (text_dim == nullptr) {
    fields.refuse("graphs.transformer.inputs", nullptr, "an input \"text\" whose last axis is a whole number");
  }
  const Sizes sizes = {{"r", spec.geometry.temporal_ratio}, {"P", spec.geometry.patch_dim}, {"Dt", *text_dim}};
  for (const Interface& interface : interfaces()) {
    const GraphSpec& graph = *spec.find_graph(interface.graph);
    const std::string field = join_text("graphs.", interface.graph);
    check_side(field + ".inputs", "cache_", interface.inputs, graph.inputs, sizes, fields);
    check_side(field + ".outputs", "next_cache_", interface.outputs, graph.outputs, sizes, fields);
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
