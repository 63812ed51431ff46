// What bundle.json says, with every field checked. The twin of editverse_rt/bundle/description.py.
#include <algorithm>
#include <cmath>
#include <set>

#include "bundle.hpp"
#include "error.hpp"
#include "fields.hpp"
#include "interface.hpp"

namespace ev {

namespace {

// Far above what any bundle states; sums and products of such numbers stay within 64 bits.
constexpr std::int64_t kMaxSidePx = 16384;
constexpr std::int64_t kMaxCount = 1 << 24;

Geometry read_geometry(Fields fields) {
  Geometry g;
  g.temporal_ratio = fields.integer("temporal_ratio", 1, kMaxCount);
  g.spatial_ratio = fields.integer("spatial_ratio", 1, kMaxSidePx);
  g.patch_size = fields.integer("patch_size", 1, kMaxSidePx);
  g.patch_dim = fields.integer("patch_dim", 1, kMaxCount);
  g.clean_dim = fields.integer("clean_dim", 1, kMaxCount);
  g.min_area_px = fields.integer("min_area_px", 1);
  g.max_area_px = fields.integer("max_area_px", 1);
  g.max_side_px = fields.integer("max_side_px", 1, kMaxSidePx);
  g.max_frames = fields.integer("max_frames", 1, kMaxCount);
  g.default_height_px = fields.integer("default_height_px", 1);
  g.default_width_px = fields.integer("default_width_px", 1);
  g.default_frames = fields.integer("default_frames", 1);
  g.default_fps = fields.positive_number("default_fps");
  g.shared_frames = fields.integer("shared_frames", 0, kMaxCount);
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
  // The default is a size like any other, so that there is at least one.
  const std::int64_t area_px = g.default_height_px * g.default_width_px;
  if (area_px < g.min_area_px || area_px > g.max_area_px) {
    fields.refuse("default_height_px", g.default_height_px,
                  join_text("with default_width_px = ", g.default_width_px,
                            " an area from min_area_px = ", g.min_area_px, " to max_area_px = ", g.max_area_px));
  }
  const std::pair<const char*, std::int64_t> lengths[] = {{"max_frames", g.max_frames},
                                                          {"default_frames", g.default_frames}};
  for (const auto& [field, frames] : lengths) {
    if (frames > g.max_frames || g.round_frames(frames) != frames) {
      fields.refuse(field, frames, join_text("1 + ", g.temporal_ratio, " * k, up to max_frames = ", g.max_frames));
    }
  }
  const std::int64_t shared = g.shared_frames;
  if (shared != 0 && (shared >= g.max_frames || g.round_frames(shared) != shared)) {
    fields.refuse("shared_frames", shared,
                  join_text("0, or 1 + ", g.temporal_ratio, " * k below max_frames = ", g.max_frames));
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

ScheduleTable read_table(Fields fields) {
  ScheduleTable table;
  table.times = fields.numbers("times");
  table.timesteps = fields.numbers("timesteps");
  table.guidance = fields.numbers("guidance");
  table.matrices = fields.matrices("matrices");
  const std::vector<double> experts = fields.numbers("experts");
  fields.finish();
  const std::vector<double>& times = table.timesteps;
  if (times.empty() || times.front() < 0 || times.back() >= 1 || !std::is_sorted(times.begin(), times.end())) {
    fields.refuse("timesteps", times, "times in [0, 1), none below the one before");
  }
  const std::pair<const char*, std::size_t> lengths[] = {{"times", table.times.size()},
                                                         {"matrices", table.matrices.size()},
                                                         {"guidance", table.guidance.size()},
                                                         {"experts", experts.size()}};
  for (const auto& [field, length] : lengths) {
    if (length == times.size()) continue;
    fields.refuse(field, join_text(length, " entries"), join_text(times.size(), ", one for each of the timesteps"));
  }
  if (std::any_of(table.guidance.begin(), table.guidance.end(), [](double scale) { return scale < 0; })) {
    fields.refuse("guidance", table.guidance, "numbers of at least 0");
  }
  for (const double expert : experts) {
    if (expert != 0 && expert != 1) fields.refuse("experts", experts, "0 or 1 for each step");
    table.experts.push_back(expert == 1 ? 1 : 0);
  }
  return table;
}

Schedule read_schedule(const std::string& name, Fields fields) {
  Schedule schedule;
  schedule.name = name;
  Fields options = fields.child("options");
  schedule.graph = fields.text("graph");
  schedule.guidance_scale = fields.number("guidance_scale", 0.0);
  schedule.table = read_table(fields.child("table"));
  for (const std::string& option : options.names()) schedule.options.emplace_back(option, options.number(option));
  fields.finish();
  return schedule;
}

Capabilities read_capabilities(Fields fields) {
  Capabilities capabilities;
  fields.mapping("emulates");
  capabilities.generates = fields.boolean("generates");
  capabilities.edits = fields.boolean("edits");
  capabilities.negative_prompt = fields.boolean("negative_prompt");
  capabilities.strength = fields.boolean("strength");
  capabilities.attention = fields.choice("attention", {"inline", "fused", "plugin"});
  capabilities.convolutions = fields.choice("convolutions", {"volumes", "frames"});
  capabilities.dtype = fields.choice("dtype", {"float32", "bfloat16", "float16"});
  capabilities.weights = fields.choice("weights", {"float", "int8"});
  fields.finish();
  return capabilities;
}

/// The options of a schedule are the numbers that its graph takes, but for those that every request gives. The second
/// guidance scale is the first unless the options say otherwise.
void check_options(const Schedule& schedule, const GraphSpec& graph, const Fields& fields) {
  std::set<std::string> required;
  for (const TensorSpec& tensor : graph.inputs) required.insert(tensor.name);
  for (const char* name : {"num_steps", "first_step", "guidance_scale"}) required.erase(name);
  std::set<std::string> allowed = required, given;
  required.erase("guidance_scale_2");
  for (const auto& [name, value] : schedule.options) given.insert(name);
  if (std::includes(given.begin(), given.end(), required.begin(), required.end()) &&
      std::includes(allowed.begin(), allowed.end(), given.begin(), given.end())) {
    return;
  }
  std::string names;
  for (const std::string& name : required) names += (names.empty() ? "values of " : ", ") + name;
  fields.refuse("schedules." + schedule.name + ".options", given, names);
}

/// Matrices of the solver's size, and graphs and transformers that are there. The interfaces were checked before.
void check_schedules(const BundleSpec& spec, const Fields& fields) {
  std::size_t states = 1;
  for (const TensorSpec& tensor : spec.find_graph("solver_step")->inputs) {
    if (tensor.name == "history") states += static_cast<std::size_t>(std::get<std::int64_t>(tensor.shape.front()));
  }
  std::string graphs;
  for (const GraphSpec& graph : spec.graphs) {
    if (graph.name.rfind("schedule_", 0) == 0) graphs += (graphs.empty() ? "" : ", ") + graph.name;
  }
  for (const Schedule& schedule : spec.schedules) {
    const std::string where = "schedules." + schedule.name;
    const GraphSpec* graph = spec.find_graph(schedule.graph);
    const bool makes_tables = graph != nullptr && graph->name.rfind("schedule_", 0) == 0;
    // A fixed table has neither a graph nor options to make another from.
    if (!makes_tables && !(schedule.is_fixed() && schedule.options.empty())) {
      fields.refuse(where + ".graph", schedule.graph, "one of the graphs " + graphs);
    }
    if (makes_tables) check_options(schedule, *graph, fields);
    const std::vector<std::int64_t>& experts = schedule.table.experts;
    if (spec.find_graph("transformer_2") == nullptr && std::count(experts.begin(), experts.end(), 1) > 0) {
      fields.refuse(where + ".table.experts", experts, "0 for each step without a graph \"transformer_2\"");
    }
    for (const Matrix& matrix : schedule.table.matrices) {
      const bool fits = matrix.size() == states && std::all_of(matrix.begin(), matrix.end(), [&](const auto& row) {
                          return row.size() == states + 1;
                        });
      if (fits) continue;
      fields.refuse(
          where + ".table.matrices", matrix,
          join_text("matrices of ", states, " rows of ", states + 1, " numbers, as the graph solver_step takes"));
    }
  }
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

}  // namespace

BundleSpec spec_from_json(std::string_view text, const std::string& where) {
  const Json value = parse_json(text, where);
  Fields fields(value, where, "");
  BundleSpec spec;
  spec.format_version = fields.integer("format_version", 1);
  if (spec.format_version > kFormatVersion) {
    // Before any other field: a newer format may mean anything by them.
    throw Error(EV_ERROR_BUNDLE, "bundle.format", "format_version")
        .found(where, ": format_version is ", spec.format_version, ", made by a newer version of editverse-rt")
        .hint("this one reads up to ", kFormatVersion, "; take a newer version of the library");
  }
  if (spec.format_version < kFormatVersion) {
    throw Error(EV_ERROR_BUNDLE, "bundle.format", "format_version")
        .found(where, ": format_version is ", spec.format_version, ", made by an older version of editverse-rt")
        .expected(kFormatVersion)
        .hint("convert it with: python -m export.convert_bundle BUNDLE");
  }
  spec.geometry = read_geometry(fields.child("geometry"));
  Fields tokenizer = fields.child("tokenizer");
  spec.tokenizer = {tokenizer.path("file"), tokenizer.integer("eos_id", 0), tokenizer.integer("max_tokens", 2)};
  tokenizer.finish();
  for (const Fields& entry : fields.children("files")) spec.files.push_back(read_file_spec(entry));
  spec.name = fields.string("name");
  spec.family = fields.string("family");
  spec.conditioning = fields.choice("conditioning", {"none", "interleaved", "rows", "channels", "control"});
  spec.unconditional = fields.choice("unconditional", {"drop_text", "prompt"});
  spec.default_negative_prompt = fields.text("default_negative_prompt");
  spec.capabilities = read_capabilities(fields.child("capabilities"));
  fields.mapping("model");
  for (const auto& [name, entry] : fields.named_children("graphs")) spec.graphs.push_back(read_graph(name, entry));
  for (const auto& [name, entry] : fields.named_children("schedules")) {
    spec.schedules.push_back(read_schedule(name, entry));
  }
  spec.default_schedule = fields.string("default_schedule");
  fields.mapping("costs");  // the planner is the Python host's
  fields.mapping("made");
  fields.mapping("quality");
  fields.finish();
  if (spec.find_schedule(spec.default_schedule) == nullptr) {
    std::string known;
    for (const Schedule& schedule : spec.schedules) known += (known.empty() ? "" : ", ") + schedule.name;
    fields.refuse("default_schedule", spec.default_schedule, "one of " + (known.empty() ? "none" : known));
  }
  check_listed(spec, fields);
  check_interfaces(spec, fields);
  if (spec.geometry.shared_frames != 0 && spec.find_graph("keep_known") == nullptr) {
    fields.refuse("geometry.shared_frames", spec.geometry.shared_frames, "0 without a graph \"keep_known\"");
  }
  check_schedules(spec, fields);
  return spec;
}

}  // namespace ev
