// Holds the choice of plans and their shapes to the vectors that the Python host wrote: engines_test FOLDER
#include <unistd.h>

#include <iostream>

#include "engine.hpp"
#include "vectors.hpp"

namespace {

namespace fs = std::filesystem;
using vectors::Json;

/// A new folder, which goes with this.
struct Folder {
  Folder() : path(fs::temp_directory_path() / ("editverse-engines-" + std::to_string(getpid()))) {
    fs::remove_all(path);
    fs::create_directories(path);
    path = fs::canonical(path);
  }
  ~Folder() { fs::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  /// A text in which the folder is called ROOT, as in the vectors.
  std::string mask(std::string text) const {
    const std::string name = path.string();
    for (std::size_t at = 0; (at = text.find(name, at)) != std::string::npos;) text.replace(at, name.size(), "ROOT");
    return text;
  }

  fs::path path;
};

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

ev::Bundle bundle_of(const fs::path& root, const Json& files, const std::vector<std::string>& graphs) {
  ev::Bundle bundle{root, {}};
  bundle.spec.name = "vectors";
  for (const std::string& graph : graphs) bundle.spec.graphs.push_back({graph, graph + ".onnx", {}, {}});
  for (const Json& file : files) bundle.spec.files.push_back({file.at(0), 1, file.at(1)});
  return bundle;
}

Json digest_result(const Json& one, const std::vector<std::string>& graphs) {
  const ev::Bundle bundle = bundle_of("", one.at("files"), graphs);
  Json digests = Json::array();
  for (const std::string& graph : graphs) digests.push_back(ev::source_digest(bundle.spec, graph));
  return digests;
}

/// As manifests are written: [backend, version, capabilities, gpu, plans].
Json manifest_result(const Json& base, const Json& one) {
  const ev::EngineSet found = ev::engines_from_json(vectors::apply_edits(base, one.at("edits")), "ROOT");
  Json plans = Json::array();
  for (const ev::PlanSpec& plan : found.plans) {
    plans.push_back({plan.graph, plan.file, plan.sha256, plan.profiles.size()});
  }
  return {found.backend, found.backend_version, found.compute_capabilities, found.gpu, plans};
}

Json profile_result(const Json& one) {
  ev::PlanSpec plan;
  plan.graph = "transformer";
  for (const Json& profile : one.at("profiles")) {
    plan.profiles.emplace_back();
    for (const auto& [name, rows] : profile.items()) {
      plan.profiles.back().shapes.emplace_back(name, ev::ShapeRange{rows.at(0), rows.at(1), rows.at(2)});
    }
  }
  return ev::choose_profile(plan, one.at("shapes").get<ev::Shapes>());
}

std::vector<ev::TensorSpec> tensors_of(const Json& rows) {
  std::vector<ev::TensorSpec> tensors;
  for (const Json& row : rows) {
    tensors.push_back({row.at(0), row.at(1), {}});
    for (const Json& axis : row.at(2)) {
      if (axis.is_string()) {
        tensors.back().shape.emplace_back(axis.get<std::string>());
      } else {
        tensors.back().shape.emplace_back(axis.get<std::int64_t>());
      }
    }
  }
  return tensors;
}

Json shapes_result(const Json& one) {
  const ev::GraphSpec graph{"graph", "g.onnx", tensors_of(one.at("inputs")), tensors_of(one.at("outputs"))};
  const ev::Shapes made = ev::output_shapes(graph, one.at("shapes").get<ev::Shapes>());
  Json result = Json::object();
  for (const ev::TensorSpec& tensor : graph.outputs) {
    result[tensor.name] = {made.at(tensor.name), ev::count_bytes(tensor, made.at(tensor.name))};
  }
  return result;
}

Json choice_result(const Json& base, const Json& one, const std::vector<std::string>& graphs) {
  const Folder folder;
  for (const auto& [where, edits] : one.at("folders").items()) {
    write(folder.path / where / "manifest.json", vectors::apply_edits(base, edits));
  }
  for (const auto& [where, stamp] : one.at("stamps").items()) {
    write(folder.path / where / "verified.json", stamp.get<std::string>());
  }
  const ev::Bundle bundle = bundle_of(folder.path, one.at("files"), graphs);
  const ev::Gpu gpu{0, one.at("gpu").at(0), one.at("gpu").at(1)};
  try {
    const ev::ChosenPlans chosen = ev::choose_plans(bundle, graphs, "tensorrt-rtx", one.at("version"), gpu);
    CHECK(chosen.plans.size() == graphs.size());
    return chosen.engines.folder.lexically_relative(folder.path).generic_string();
  } catch (const ev::Error& error) {
    throw ev::Error(error.code()).found(folder.mask(error.what()));
  }
}

void check_host_graphs() {
  for (const char* name : {"noise", "add_noise", "schedule_euler", "schedule_"}) CHECK(ev::is_host_graph(name));
  for (const char* name : {"transformer", "solver_step", "noise_next", "schedules"}) CHECK(!ev::is_host_graph(name));
}

/// What the vectors cannot hold: damaged files.
void check_files() {
  const Folder folder;
  const auto fails = [&](const std::string& part, const auto& call) {
    const Json found = vectors::outcome([&]() -> Json { return call(), nullptr; });
    const std::string text = found.value("text", "nothing");
    CHECK_MSG(found.value("error", "") == "BackendError" && text.find(part) != std::string::npos, text);
  };
  ev::EngineSet engines;
  engines.folder = folder.path;
  ev::PlanSpec plan;
  plan.graph = "transformer";
  plan.file = "transformer.plan";
  fails("transformer.plan is missing; build", [&] { ev::map_plan_file(engines, plan); });
  write(folder.path / plan.file, "the bytes of a plan");
  fails("was altered", [&] { ev::map_plan_file(engines, plan); });
  plan.sha256 = ev::hash_bytes("the bytes of a plan");
  const ev::MappedFile bytes = ev::map_plan_file(engines, plan);
  CHECK(std::string(bytes.data(), bytes.size()) == "the bytes of a plan");
  CHECK(ev::hash_file(folder.path / plan.file) == plan.sha256);
  write(folder.path / plan.file, "");
  plan.sha256 = ev::hash_bytes("");
  CHECK(ev::map_plan_file(engines, plan).size() == 0);

  fails("cannot be read as UTF-8 JSON", [&] { ev::engines_from_json("{", folder.path); });
  fails("inside each other", [&] { ev::engines_from_json(std::string(100000, '['), folder.path); });
}

/// Plans of a bundle that ships lie beside the package in a checkout, and in the bundle elsewhere.
void check_folders() {
  const Folder folder;
  const fs::path shipped = folder.path / "checkout" / "editverse_rt" / "bundles" / "fake";
  const ev::Bundle bundle = bundle_of(shipped, Json::array(), {});
  CHECK(ev::engines_folder(bundle) == shipped / "engines");
  fs::create_directories(folder.path / "checkout" / "engines");
  CHECK(ev::engines_folder(bundle) == folder.path / "checkout" / "engines" / "fake");
  CHECK(ev::engines_folder(bundle_of(shipped.string() + "/", Json::array(), {})) ==
        folder.path / "checkout" / "engines" / "fake");
  const fs::path other = folder.path / "checkout" / "bundles" / "fake";
  CHECK(ev::engines_folder(bundle_of(other, Json::array(), {})) == other / "engines");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: engines_test FOLDER\n";
    return 2;
  }
  const Json all = vectors::read_vectors(argv[1], "engines.json");
  const auto graphs = all.at("graphs").get<std::vector<std::string>>();
  const Json& base = all.at("base").at(0);
  vectors::check_list(all.at("digests"), "digests", [&](const Json& one) { return digest_result(one, graphs); });
  vectors::check_list(all.at("profiles"), "profiles", profile_result);
  vectors::check_list(all.at("choices"), "choices", [&](const Json& one) { return choice_result(base, one, graphs); });
  // What was found is shown in the manner of each language, so of these texts only the name counts.
  std::size_t index = 0;
  for (Json one : all.at("manifests")) {
    Json found = vectors::outcome([&] { return manifest_result(base, one); });
    for (Json* value : {&found, &one}) {
      if (value->contains("text")) (*value)["text"] = vectors::named_field((*value)["text"]);
    }
    vectors::compare(found, one, "manifests", index++);
  }
  index = 0;
  for (Json one : all.at("shapes")) {
    Json found = vectors::outcome([&] { return shapes_result(one); });
    for (Json* value : {&found, &one}) value->erase("text");
    vectors::compare(found, one, "shapes", index++);
  }
  check_host_graphs();
  check_files();
  check_folders();
  return check::report();
}
