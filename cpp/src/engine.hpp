// Plans on disk: the manifest beside them, which may run here, its profile, the sizes of its buffers. The twin of
// editverse_rt/engines/. Nothing here needs a GPU: what does is in trt.cpp.
//
//     BUNDLE/engines/<targets>/<backend>-<version>/manifest.json, <graph>-<precision>.plan, verified.json
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "files.hpp"

namespace ev {

constexpr const char* kBuildAgain = "build the engines again";

using Shape = std::vector<std::int64_t>;
using Shapes = std::map<std::string, Shape>;

/// What one dynamic input of a profile may have, axis by axis.
struct ShapeRange {
  Shape least, tuned, largest;

  bool holds(const Shape& shape) const;
};

/// One optimization profile of a plan.
struct ShapeProfile {
  std::string name;
  std::vector<std::pair<std::string, ShapeRange>> shapes;
};

/// One plan: the graph it is of, and its file. source_sha256: of the bundle's files that it was built from.
struct PlanSpec {
  std::string graph;
  std::string file;
  std::string sha256;
  std::string source_sha256;
  std::vector<ShapeProfile> profiles;
  bool weight_streaming = false;
  bool needs_plugin = false;
};

/// The plans of one folder, all built by one version of one backend for the same GPUs. gpu: the name of the only GPU
/// that they run on, "" if they run on all of those compute capabilities ("8.9").
struct EngineSet {
  std::filesystem::path folder;
  std::string backend;
  std::string backend_version;
  std::vector<std::string> compute_capabilities;
  std::string gpu;
  std::vector<PlanSpec> plans;
};

/// The GPU that is used: its number, name and compute capability.
struct Gpu {
  int index = 0;
  std::string name;
  std::string capability;
};

/// The plans of some graphs, by graph.
struct ChosenPlans {
  EngineSet engines;
  std::map<std::string, PlanSpec> plans;
};

/// One sha256 over the bundle's files that hold a graph and its weights, from the hashes that it lists.
std::string source_digest(const BundleSpec& spec, const std::string& graph);

/// Checks the text of a manifest field by field. folder: where it lies. Throws EV_ERROR_BACKEND that names the field.
EngineSet engines_from_json(std::string_view text, const std::filesystem::path& folder);

/// Where a bundle's plans lie: in its folder, but for one that ships, in a checkout's `engines/`. See engines_folder in
/// engines/manifest.py.
std::filesystem::path engines_folder(const Bundle& bundle);

/// Whether every backend runs a graph on the CPU; see is_host_graph in engines/choice.py.
bool is_host_graph(const std::string& graph);

/// The plans of all graphs for this GPU, from the first folder that has them, verified ones first. Throws
/// EV_ERROR_BACKEND that says why none may run here, and which command builds one that may: none built, built for
/// another GPU, by another version of the backend, or from another state of the bundle.
ChosenPlans choose_plans(const Bundle& bundle, const std::vector<std::string>& graphs, const std::string& backend,
                         const std::string& version, const Gpu& gpu);

/// Whether a stamp beside the plans says that just these were verified on that GPU.
bool is_verified(const EngineSet& engines, const std::string& gpu);

/// The bytes of a plan, of the hash that the manifest says. Throws EV_ERROR_BACKEND.
MappedFile map_plan_file(const EngineSet& engines, const PlanSpec& plan);

/// The number of the smallest profile that holds the shapes of these inputs. Throws EV_ERROR_BACKEND with what the
/// profiles reach, and the option of the builder that reaches further.
std::size_t choose_profile(const PlanSpec& plan, const Shapes& shapes);

/// Why plans and a caller's options do not go together, and what to do; nothing if they do.
std::optional<std::string> refuse_options(const std::map<std::string, PlanSpec>& plans, bool has_plugin,
                                          bool has_budget);

/// How much of a plan's weights lies on the GPU: what the caller asked for, or TensorRT's own choice.
std::int64_t choose_weight_budget(std::optional<std::int64_t> asked_bytes, std::int64_t streamable_bytes,
                                  std::int64_t automatic_bytes);

/// Shapes of a graph's outputs from those of its inputs, by the names of their axes (`16*h`). Throws
/// EV_ERROR_BACKEND for inputs that are missing, or contradict each other or the graph table.
Shapes output_shapes(const GraphSpec& graph, const Shapes& shapes);

/// Bytes of a tensor of the graph table at a shape; at least one, because a buffer needs an address.
std::size_t count_bytes(const TensorSpec& tensor, const Shape& shape);

}  // namespace ev
