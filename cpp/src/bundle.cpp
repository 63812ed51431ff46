#include "bundle.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>

#include "error.hpp"
#include "fields.hpp"
#include "files.hpp"
#include "interface.hpp"

namespace ev {

namespace fs = std::filesystem;

namespace {

constexpr const char* kBundleJson = "bundle.json";
// Far above what any bundle states; sums and products of such numbers stay within 64 bits.
constexpr std::int64_t kMaxSidePx = 16384;
constexpr std::int64_t kMaxCount = 1 << 24;
constexpr std::uintmax_t kMaxJsonBytes = 64u << 20;

Geometry read_geometry(Fields fields) {
  Geometry g;
  g.temporal_ratio = fields.integer("temporal_ratio", 1, kMaxCount);
  g.spatial_ratio = fields.integer("spatial_ratio", 1, kMaxSidePx);
  g.patch_size = fields.integer("patch_size", 1, kMaxSidePx);
  g.patch_dim = fields.integer("patch_dim", 1, kMaxCount);
  g.min_area_px = fields.integer("min_area_px", 1);
  g.max_area_px = fields.integer("max_area_px", 1);
  g.max_side_px = fields.integer("max_side_px", 1, kMaxSidePx);
  g.max_frames = fields.integer("max_frames", 1, kMaxCount);
  g.default_height_px = fields.integer("default_height_px", 1);
  g.default_width_px = fields.integer("default_width_px", 1);
  g.default_frames = fields.integer("default_frames", 1);
  g.default_fps = fields.positive_number("default_fps");
  fields.finish();
  if (g.min_area_px > g.max_area_px) {
    fields.refuse("min_area_px", g.min_area_px, join_text("at most max_area_px = ", g.max_area_px));
  }
  const std::pair<const char*, std::int64_t> sides[] = {{"default_height_px", g.default_height_px},
                                                        {"default_width_px", g.default_width_px}};
  for (const auto& [field, side] : sides) {
    if (side % g.size_multiple() != 0 || side > g.max_side_px) {
      fields.refuse(field, side,
                    join_text("a multiple of ", g.size_multiple(), " up to max_side_px = ", g.max_side_px));
    }
  }
  const std::pair<const char*, std::int64_t> lengths[] = {{"max_frames", g.max_frames},
                                                          {"default_frames", g.default_frames}};
  for (const auto& [field, frames] : lengths) {
    if (frames > g.max_frames || g.round_frames(frames) != frames) {
      fields.refuse(field, frames, join_text("1 + ", g.temporal_ratio, " * k, up to max_frames = ", g.max_frames));
    }
  }
  return g;
}

FileSpec read_file_spec(Fields fields) {
  FileSpec file{fields.path("path"), fields.integer("num_bytes", 0), fields.string("sha256")};
  fields.finish();
  if (file.sha256.size() != 64 || file.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fields.refuse("sha256", file.sha256, "64 lower-case hexadecimal digits");
  }
  return file;
}

TensorSpec read_tensor(Fields fields) {
  TensorSpec tensor{fields.string("name"), fields.string("dtype"), {}};
  const Json& shape = fields.array("shape");
  fields.finish();
  for (const Json& axis : shape) {
    if (axis.is_number_integer() &&
        (!axis.is_number_unsigned() || axis.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX))) {
      tensor.shape.emplace_back(axis.get<std::int64_t>());
    } else if (axis.is_string() && !axis.get_ref<const std::string&>().empty()) {
      tensor.shape.emplace_back(axis.get<std::string>());
    } else {
      fields.refuse("shape", shape, "a list of whole numbers and names of dynamic axes");
    }
  }
  return tensor;
}

GraphSpec read_graph(const std::string& name, Fields fields) {
  GraphSpec graph;
  graph.name = name;
  graph.file = fields.path("file");
  for (const Fields& entry : fields.children("inputs")) graph.inputs.push_back(read_tensor(entry));
  for (const Fields& entry : fields.children("outputs")) graph.outputs.push_back(read_tensor(entry));
  fields.finish();
  return graph;
}

Schedule read_schedule(const std::string& name, Fields fields) {
  Schedule schedule;
  schedule.name = name;
  schedule.kind = fields.string("kind");
  schedule.timesteps = fields.numbers("timesteps");
  const auto rows = fields.number_rows("coefficients");
  schedule.guidance_scale = fields.numbers("guidance_scale");
  fields.finish();
  const std::vector<double>& times = schedule.timesteps;
  if (schedule.kind != "euler" && schedule.kind != "multistep") {
    fields.refuse("kind", schedule.kind, "\"euler\" or \"multistep\"");
  }
  const bool ascending =
      std::adjacent_find(times.begin(), times.end(), [](double a, double b) { return a >= b; }) == times.end();
  if (times.empty() || !ascending || times.front() < 0 || times.back() >= 1) {
    fields.refuse("timesteps", times, "times in [0, 1), each above the one before");
  }
  for (const std::vector<double>& row : rows) {
    if (row.size() != 3) fields.refuse("coefficients", rows, join_text(times.size(), " rows of 3 numbers"));
    schedule.coefficients.push_back({row[0], row[1], row[2]});
  }
  if (rows.size() != times.size()) {
    fields.refuse("coefficients", rows, join_text(times.size(), " rows of 3 numbers"));
  }
  const std::vector<double>& guidance = schedule.guidance_scale;
  const bool negative = std::any_of(guidance.begin(), guidance.end(), [](double scale) { return scale < 0; });
  if (guidance.size() != times.size() || negative) {
    fields.refuse("guidance_scale", guidance, join_text(times.size(), " numbers of at least 0"));
  }
  return schedule;
}

void check_listed(const BundleSpec& spec, const Fields& fields) {
  std::set<std::string> listed;
  Json paths = Json::array();
  for (const FileSpec& file : spec.files) {
    listed.insert(file.path);
    paths.push_back(file.path);
  }
  if (listed.size() != spec.files.size() || listed.count(kBundleJson) != 0) {
    fields.refuse("files", paths, join_text("each file once, without ", kBundleJson, " itself"));
  }
  const auto check = [&](const std::string& field, const std::string& path) {
    if (listed.count(path) == 0) {
      fields.refuse(field, path, "a path that the list of files has, with its sha256");
    }
  };
  check("tokenizer.file", spec.tokenizer.file);
  for (const GraphSpec& graph : spec.graphs) check("graphs." + graph.name + ".file", graph.file);
}

void verify_file(const fs::path& root, const FileSpec& file) {
  const fs::path path = root / file.path;
  const std::string shown = path.string();
  std::error_code error;
  const fs::path relative = fs::weakly_canonical(path, error).lexically_relative(fs::weakly_canonical(root, error));
  if (error || relative.empty() || *relative.begin() == "..") {
    fail(EV_ERROR_BUNDLE, shown, " is a link that leaves the bundle; copy the file itself to that place");
  }
  if (!fs::is_regular_file(path, error)) {
    fail(EV_ERROR_BUNDLE, shown, " is missing; bundle.json lists it; fetch or ", kExportAgain);
  }
  const std::uintmax_t num_bytes = fs::file_size(path, error);
  if (error || num_bytes != static_cast<std::uintmax_t>(file.num_bytes)) {
    fail(EV_ERROR_BUNDLE, shown, " has ", error ? 0 : num_bytes, " bytes, expected ", file.num_bytes, "; fetch or ",
         kExportAgain);
  }
  const std::string digest = hash_file(path);
  if (digest != file.sha256) {
    fail(EV_ERROR_BUNDLE, shown, " was altered: sha256 ", digest, ", expected ", file.sha256, "; fetch or ",
         kExportAgain);
  }
}

/// A graph must not take weights from a file that was not verified. A graph names its external data by path inside
/// the ONNX file; looking for the names of the unlisted files there needs no ONNX parser.
void refuse_unlisted_weights(const fs::path& root, const BundleSpec& spec) {
  std::set<std::string> listed = {kBundleJson};
  for (const FileSpec& file : spec.files) listed.insert(file.path);
  for (const std::string& path : list_files(root)) {
    if (listed.count(path) != 0) continue;
    for (const GraphSpec& graph : spec.graphs) {
      if (file_contains(root / graph.file, fs::path(path).filename().string())) {
        fail(EV_ERROR_BUNDLE, (root / path).string(), " is not in the list of files of bundle.json, but graph \"",
             graph.name, "\" refers to it; ", kExportAgain);
      }
    }
  }
}

}  // namespace

fs::path Bundle::graph_path(const std::string& name) const {
  const GraphSpec* graph = spec.find_graph(name);
  if (graph == nullptr) {
    fail(EV_ERROR_BUNDLE, "bundle \"", spec.name, "\" has no graph \"", name, "\"; ", kExportAgain);
  }
  return root / graph->file;
}

BundleSpec spec_from_json(std::string_view text, const std::string& where) {
  const Json value = parse_json(text, where);
  Fields fields(value, where, "");
  BundleSpec spec;
  spec.format_version = fields.integer("format_version", 1);
  if (spec.format_version > kFormatVersion) {
    // Before any other field: a newer format may mean anything by them.
    fail(EV_ERROR_BUNDLE, where, ": format_version is ", spec.format_version,
         ", made by a newer version of editverse-rt; this one reads up to ", kFormatVersion,
         "; take a newer version of the library");
  }
  spec.geometry = read_geometry(fields.child("geometry"));
  Fields tokenizer = fields.child("tokenizer");
  spec.tokenizer = {tokenizer.path("file"), tokenizer.integer("eos_id", 0), tokenizer.integer("max_tokens", 2)};
  tokenizer.finish();
  for (const Fields& entry : fields.children("files")) spec.files.push_back(read_file_spec(entry));
  spec.name = fields.string("name");
  fields.mapping("model");
  for (const auto& [name, entry] : fields.named_children("graphs")) spec.graphs.push_back(read_graph(name, entry));
  for (const auto& [name, entry] : fields.named_children("schedules")) {
    spec.schedules.push_back(read_schedule(name, entry));
  }
  spec.default_schedule = fields.string("default_schedule");
  const Json& made = fields.mapping("made");
  const auto convolutions = made.find("convolutions");
  if (convolutions != made.end() && convolutions->is_string()) spec.convolutions = convolutions->get<std::string>();
  fields.mapping("quality");
  fields.finish();
  if (spec.find_schedule(spec.default_schedule) == nullptr) {
    fields.refuse("default_schedule", spec.default_schedule, "the name of one of the schedules");
  }
  check_listed(spec, fields);
  check_interfaces(spec, fields);
  return spec;
}

Bundle load_bundle(const std::string& folder) {
  const fs::path root(folder);
  const fs::path file = root / kBundleJson;
  std::error_code error;
  if (!fs::is_regular_file(file, error)) {
    fail(EV_ERROR_BUNDLE, "bundle \"", folder,
         "\": ", fs::is_directory(root, error) ? "no bundle.json in it" : "no such folder",
         "; give the folder of a bundle");
  }
  if (fs::file_size(file, error) > kMaxJsonBytes) {
    fail(EV_ERROR_BUNDLE, file.string(), " is larger than ", kMaxJsonBytes, " bytes; ", kExportAgain);
  }
  std::ifstream stream(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (!stream) fail(EV_ERROR_BUNDLE, file.string(), " cannot be read; check its permissions");
  Bundle bundle{root, spec_from_json(text, file.string())};
  for (const FileSpec& listed : bundle.spec.files) verify_file(root, listed);
  refuse_unlisted_weights(root, bundle.spec);
  return bundle;
}

}  // namespace ev
