#include "engine.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "error.hpp"
#include "fields.hpp"
#include "tensor.hpp"

namespace ev {

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kManifestVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr Damage kDamage = {EV_ERROR_BACKEND, kBuildAgain};

bool starts_with(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

std::string join(const std::vector<std::string>& parts, const char* between) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

std::string show(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += join_text(text.empty() ? "" : ", ", size);
  return "[" + text + "]";
}

Shape read_shape(const Json& row, const Fields& fields, const Json& shown) {
  Shape shape;
  for (const Json& size : row) {
    const bool whole =
        size.is_number_integer() && (!size.is_number_unsigned() || size.get<std::uint64_t>() <= INT64_MAX);
    if (!whole || size.get<std::int64_t>() < 0) break;
    shape.push_back(size.get<std::int64_t>());
  }
  if (!row.is_array() || shape.size() != row.size()) {
    fields.refuse("shapes", shown, "three shapes of the same rank: least, tuned, largest");
  }
  return shape;
}

ShapeProfile read_profile(Fields fields) {
  ShapeProfile profile;
  for (const auto& [name, rows] : fields.mapping("shapes").items()) {
    const bool three = rows.is_array() && rows.size() == 3;
    ShapeRange range;
    if (three) {
      range = {read_shape(rows[0], fields, rows), read_shape(rows[1], fields, rows), read_shape(rows[2], fields, rows)};
    }
    if (!three || range.least.size() != range.tuned.size() || range.tuned.size() != range.largest.size()) {
      fields.refuse("shapes", rows, "three shapes of the same rank: least, tuned, largest");
    }
    profile.shapes.emplace_back(name, std::move(range));
  }
  profile.name = fields.string("name");
  return profile;
}

PlanSpec read_plan(Fields fields) {
  PlanSpec plan;
  plan.graph = fields.string("graph");
  (void)fields.string("precision");
  plan.file = fields.path("file");
  (void)fields.integer("num_bytes", 1);
  plan.sha256 = fields.string("sha256");
  plan.source_sha256 = fields.string("source_sha256");
  (void)fields.string("key");
  for (const Fields& entry : fields.children("profiles")) plan.profiles.push_back(read_profile(entry));
  const Json& facts = fields.mapping("facts");
  fields.finish();
  plan.weight_streaming = facts.value("weight_streaming", Json()) == true;
  const Json plugin = facts.value("plugin", Json());  // which one it was built with, or null
  plan.needs_plugin = !plugin.is_null() && plugin != false;
  if (plan.file.find('/') != std::string::npos) {
    fields.refuse("file", plan.file, "the name of a file beside the manifest");
  }
  return plan;
}

/// All plans of a bundle, in the order of their paths.
std::vector<EngineSet> find_engines(const Bundle& bundle) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (const fs::directory_entry& target : fs::directory_iterator(engines_folder(bundle), error)) {
    std::error_code ignored;
    for (const fs::directory_entry& folder : fs::directory_iterator(target.path(), ignored)) {
      if (fs::exists(folder.path() / kManifest, ignored)) folders.push_back(folder.path());
    }
  }
  std::sort(folders.begin(), folders.end());
  std::vector<EngineSet> found;
  for (const fs::path& folder : folders) {
    const MappedFile text(folder / kManifest, EV_ERROR_BACKEND);
    found.push_back(engines_from_json({text.data(), text.size()}, folder));
  }
  return found;
}

std::string build_command(const Bundle& bundle, const std::string& backend, std::string capability) {
  capability.erase(std::remove(capability.begin(), capability.end(), '.'), capability.end());
  return join_text("python -m export.build_engine ", bundle.root.string(), " --backend ", backend, " --target sm_",
                   capability);
}

/// The Python packages add `.post1` to a version when only their packing has changed.
std::string library_version(const std::string& version) { return version.substr(0, version.find(".post")); }

/// Why the plans of a folder may not run here, or nothing.
std::optional<std::string> find_obstacle(const EngineSet& engines, const Bundle& bundle,
                                         const std::vector<std::string>& graphs, const std::string& version,
                                         const Gpu& gpu) {
  const fs::path& folder = engines.folder;
  const std::string where =
      (fs::path("engines") / folder.parent_path().filename() / folder.filename()).generic_string();
  const auto& capabilities = engines.compute_capabilities;
  const bool right_kind = std::find(capabilities.begin(), capabilities.end(), gpu.capability) != capabilities.end();
  if (!right_kind || (!engines.gpu.empty() && engines.gpu != gpu.name)) {
    return join_text(where, " is for ", engines.gpu.empty() ? join(capabilities, ", ") : engines.gpu, ", this GPU is ",
                     gpu.name, " (", gpu.capability, ")");
  }
  if (library_version(engines.backend_version) != version) {
    return join_text(where, " is of ", engines.backend, " ", engines.backend_version, ", here is ", version);
  }
  std::vector<std::string> stale, missing;
  for (const std::string& graph : graphs) {
    const auto is_of_graph = [&](const PlanSpec& plan) { return plan.graph == graph; };
    // Of one graph's plans in several precisions, the last was built last.
    const auto plan = std::find_if(engines.plans.rbegin(), engines.plans.rend(), is_of_graph);
    if (plan == engines.plans.rend()) {
      missing.push_back(graph);
    } else if (plan->source_sha256 != source_digest(bundle.spec, graph)) {
      stale.push_back(graph);
    }
  }
  if (!stale.empty()) return join_text(where, " was built from another state of ", join(stale, ", "));
  if (!missing.empty()) return join_text(where, " lacks ", join(missing, ", "));
  return std::nullopt;
}

/// `16*h` -> (16, `h`); `Lt` -> (1, `Lt`); 64 -> (64, ``).
std::pair<std::int64_t, std::string> split_axis(const std::variant<std::int64_t, std::string>& axis) {
  if (const auto* size = std::get_if<std::int64_t>(&axis)) return {*size, ""};
  const auto& text = std::get<std::string>(axis);
  const std::size_t star = text.rfind('*');
  if (star == std::string::npos) return {1, text};
  const std::string factor = text.substr(0, star);
  const bool number = !factor.empty() && factor.size() < 10 &&
                      factor.find_first_not_of("0123456789") == std::string::npos && std::stoll(factor) > 0;
  if (!number) {
    throw Error(EV_ERROR_BUNDLE, "bundle.field")
        .found("a graph has the axis \"", text, "\"")
        .expected("a name, or 16*name")
        .hint(kExportAgain);
  }
  return {std::stoll(factor), text.substr(star + 1)};
}

std::string show_axes(const TensorSpec& tensor) {
  Json axes = Json::array();
  for (const auto& axis : tensor.shape) std::visit([&](const auto& value) { axes.push_back(value); }, axis);
  return axes.dump();
}

}  // namespace

bool ShapeRange::holds(const Shape& shape) const {
  bool inside = shape.size() == least.size();
  for (std::size_t i = 0; inside && i < shape.size(); ++i) inside = least[i] <= shape[i] && shape[i] <= largest[i];
  return inside;
}

std::string source_digest(const BundleSpec& spec, const std::string& graph) {
  const fs::path file = spec.find_graph(graph)->file;
  std::vector<std::string> parts;
  for (const FileSpec& entry : spec.files) {
    const fs::path path = entry.path;
    const bool weights = path.extension() == ".weights" && path.parent_path() == file.parent_path() &&
                         starts_with(graph, path.stem().string());
    if (path == file || weights) parts.push_back(entry.path + " " + entry.sha256);
  }
  std::sort(parts.begin(), parts.end());
  return hash_bytes(join(parts, "\n"));
}

EngineSet engines_from_json(std::string_view text, const fs::path& folder) {
  const std::string where = (folder / kManifest).string();
  const Json value = parse_json(text, where, kDamage);
  Fields fields(value, where, "", kDamage);
  const std::int64_t version = fields.integer("format_version", 1);
  if (version != kManifestVersion) fields.refuse("format_version", version, join_text(kManifestVersion));
  EngineSet engines;
  engines.folder = folder;
  engines.backend = fields.string("backend");
  engines.backend_version = fields.string("backend_version");
  for (const Json& capability : fields.array("compute_capabilities")) {
    engines.compute_capabilities.push_back(capability.is_string() ? capability.get<std::string>() : capability.dump());
  }
  engines.gpu = fields.text("gpu");
  for (const Fields& entry : fields.children("plans")) engines.plans.push_back(read_plan(entry));
  (void)fields.mapping("notes");
  return engines;
}

fs::path engines_folder(const Bundle& bundle) {
  fs::path root = bundle.root.lexically_normal();
  if (!root.has_filename()) root = root.parent_path();  // "nano/"
  const fs::path shipped = root.parent_path(), package = shipped.parent_path();
  const fs::path recipes = package.parent_path() / "engines";
  std::error_code error;
  const bool is_checkout =
      package.filename() == "editverse_rt" && shipped.filename() == "bundles" && fs::is_directory(recipes, error);
  return is_checkout ? recipes / root.filename() : bundle.root / "engines";
}

bool is_host_graph(const std::string& graph) {
  return graph == "noise" || graph == "add_noise" || graph == "keep_known" || graph.rfind("schedule_", 0) == 0;
}

ChosenPlans choose_plans(const Bundle& bundle, const std::vector<std::string>& graphs, const std::string& backend,
                         const std::string& version, const Gpu& gpu) {
  std::string reasons;
  std::vector<EngineSet> fitting;
  for (EngineSet& engines : find_engines(bundle)) {
    if (engines.backend != backend) continue;
    if (const auto obstacle = find_obstacle(engines, bundle, graphs, version, gpu)) {
      reasons += (reasons.empty() ? "" : "; ") + *obstacle;
    } else {
      fitting.push_back(std::move(engines));
    }
  }
  if (fitting.empty()) {
    if (reasons.empty()) reasons = join_text("bundle \"", bundle.spec.name, "\" has no plan of ", backend);
    throw Error(EV_ERROR_BACKEND, "backend.engine_missing")
        .found(reasons)
        .hint("build it with: ", build_command(bundle, backend, gpu.capability));
  }
  const auto verified = [&](const EngineSet& engines) { return is_verified(engines, gpu.name); };
  const auto first = std::find_if(fitting.begin(), fitting.end(), verified);
  ChosenPlans chosen{first == fitting.end() ? fitting.front() : *first, {}};
  for (const PlanSpec& plan : chosen.engines.plans) {
    if (std::find(graphs.begin(), graphs.end(), plan.graph) != graphs.end()) chosen.plans[plan.graph] = plan;
  }
  return chosen;
}

bool is_verified(const EngineSet& engines, const std::string& gpu) {
  try {
    const std::string where = (engines.folder / "verified.json").string();
    const MappedFile text(where, EV_ERROR_BACKEND);
    const Json stamp = parse_json({text.data(), text.size()}, where, kDamage);
    nlohmann::json plans = nlohmann::json::object();  // compared whatever the order of its fields
    for (const PlanSpec& plan : engines.plans) plans[plan.file] = plan.sha256;
    return stamp.is_object() && stamp.contains("gpu") && stamp.contains("plans") && stamp["gpu"] == gpu &&
           nlohmann::json(stamp["plans"]) == plans;
  } catch (const Error&) {
    return false;
  }
}

MappedFile map_plan_file(const EngineSet& engines, const PlanSpec& plan) {
  const fs::path path = engines.folder / plan.file;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    throw Error(EV_ERROR_BACKEND, "backend.engine_damaged").found(path.string(), " is missing").hint(kBuildAgain);
  }
  MappedFile bytes(path, EV_ERROR_BACKEND);
  if (hash_bytes({bytes.data(), bytes.size()}) != plan.sha256) {
    throw Error(EV_ERROR_BACKEND, "backend.engine_damaged")
        .found(path.string(), " was altered: its sha256 is not the manifest's")
        .hint(kBuildAgain);
  }
  return bytes;
}

std::size_t choose_profile(const PlanSpec& plan, const Shapes& shapes) {
  if (plan.profiles.empty()) {
    throw Error(EV_ERROR_BACKEND, "backend.engine_damaged")
        .found("the plan of graph \"", plan.graph, "\" has no profile")
        .hint(kBuildAgain);
  }
  for (const ShapeProfile& profile : plan.profiles) {
    for (const auto& [name, range] : profile.shapes) {
      if (shapes.count(name) != 0) continue;
      throw Error(EV_ERROR_BACKEND, "backend.engine_damaged")
          .found("the plan of graph \"", plan.graph, "\" has a profile of \"", name,
                 "\", which the graph does not take")
          .hint(kBuildAgain);
    }
  }
  // Values of all inputs at their largest, for the order only: far more than 64 bits hold.
  const auto count_largest = [&](std::size_t index) {
    double sum = 0;
    for (const auto& [name, range] : plan.profiles[index].shapes) {
      sum += std::accumulate(range.largest.begin(), range.largest.end(), 1.0,
                             [](double product, std::int64_t size) { return product * static_cast<double>(size); });
    }
    return sum;
  };
  std::vector<std::size_t> order(plan.profiles.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return count_largest(a) < count_largest(b); });
  std::vector<std::string> found, reach;
  for (const std::size_t index : order) {
    found.clear(), reach.clear();
    for (const auto& [name, range] : plan.profiles[index].shapes) {
      const Shape& shape = shapes.at(name);
      if (range.holds(shape)) continue;
      found.push_back(name + " " + show(shape));
      reach.push_back(join_text(name, " ", show(range.least), " to ", show(range.largest)));
    }
    if (found.empty()) return index;
  }
  throw Error(EV_ERROR_BACKEND, "backend.engine_range")
      .found("graph \"", plan.graph, "\" was asked for ", join(found, ", "), ", its plan reaches ", join(reach, ", "))
      .hint("ask for less, or build the engines again for larger shapes");
}

Shapes output_shapes(const GraphSpec& graph, const Shapes& shapes) {
  std::map<std::string, std::int64_t> sizes;
  for (const TensorSpec& tensor : graph.inputs) {
    const auto given = shapes.find(tensor.name);
    bool fits = given != shapes.end() && given->second.size() == tensor.shape.size();
    for (std::size_t i = 0; fits && i < tensor.shape.size(); ++i) {
      const auto [factor, name] = split_axis(tensor.shape[i]);
      const std::int64_t size = given->second[i];
      // A name has one size everywhere.
      fits = name.empty() ? size == factor
                          : size % factor == 0 && sizes.emplace(name, size / factor).first->second == size / factor;
    }
    if (!fits) {
      const std::string state = given == shapes.end() ? "is missing" : "has shape " + show(given->second);
      throw Error(EV_ERROR_BACKEND, "backend.inputs")
          .found("graph \"", graph.name, "\": ", tensor.name, " ", state, ", expected ", show_axes(tensor))
          .hint("give inputs as the bundle's graph table has them");
    }
  }
  Shapes results;
  for (const TensorSpec& tensor : graph.outputs) {
    Shape& shape = results[tensor.name];
    for (const auto& axis : tensor.shape) {
      const auto [factor, name] = split_axis(axis);
      if (!name.empty() && sizes.count(name) == 0) {
        throw Error(EV_ERROR_BACKEND, "bundle.field")
            .found("graph \"", graph.name, "\": no input has the axis ", name, " of ", tensor.name)
            .hint(kExportAgain);
      }
      shape.push_back(name.empty() ? factor : factor * sizes.at(name));
    }
  }
  return results;
}

std::size_t count_bytes(const TensorSpec& tensor, const Shape& shape) {
  const std::int64_t count =
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, [](auto a, auto b) { return a * b; });
  return std::max<std::size_t>(1, static_cast<std::size_t>(count) * dtype_bytes(tensor.dtype));
}

std::optional<std::string> refuse_options(const std::map<std::string, PlanSpec>& plans, bool has_plugin,
                                          bool has_budget) {
  std::string with_plugin;
  bool streams = false;
  for (const auto& [graph, plan] : plans) {
    if (plan.needs_plugin) with_plugin += join_text(with_plugin.empty() ? "" : ", ", graph);
    streams = streams || plan.weight_streaming;
  }
  if (!with_plugin.empty() && !has_plugin) {
    return join_text("its plan of ", with_plugin, " was built with the RopeAttention plugin; give its library as ",
                     "plugin (build/plugin/libeditverse_plugin.so), or build the engines again without it");
  }
  if (has_plugin && with_plugin.empty()) {
    return "none of its plans was built with a plugin; leave plugin out";
  }
  if (has_budget && !streams) {
    return "its plans hold all weights on the GPU; build the engines again with weight streaming";
  }
  return std::nullopt;
}

std::int64_t choose_weight_budget(std::optional<std::int64_t> asked_bytes, std::int64_t streamable_bytes,
                                  std::int64_t automatic_bytes) {
  return std::min(asked_bytes.value_or(automatic_bytes), streamable_bytes);
}

}  // namespace ev
