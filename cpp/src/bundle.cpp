#include "bundle.hpp"

#include <fstream>
#include <set>

#include "error.hpp"
#include "fields.hpp"
#include "files.hpp"

namespace ev {

namespace fs = std::filesystem;

namespace {

constexpr std::uintmax_t kMaxJsonBytes = 64u << 20;

void verify_file(const fs::path& root, const FileSpec& file) {
  const fs::path path = root / file.path;
  const std::string shown = path.string();
  std::error_code error;
  const fs::path relative = fs::weakly_canonical(path, error).lexically_relative(fs::weakly_canonical(root, error));
  if (error || relative.empty() || *relative.begin() == "..") {
    throw Error(EV_ERROR_BUNDLE, "bundle.file_outside")
        .found(shown, " is a link that leaves the bundle")
        .hint("copy the file itself to that place");
  }
  if (!fs::is_regular_file(path, error)) {
    throw Error(EV_ERROR_BUNDLE, "bundle.file_missing")
        .found(shown, " is missing")
        .hint("bundle.json lists it; fetch or ", kExportAgain);
  }
  const std::uintmax_t num_bytes = fs::file_size(path, error);
  if (error || num_bytes != static_cast<std::uintmax_t>(file.num_bytes)) {
    throw Error(EV_ERROR_BUNDLE, "bundle.file_altered")
        .found(shown, " has ", error ? 0 : num_bytes, " bytes")
        .expected(file.num_bytes)
        .hint("fetch or ", kExportAgain);
  }
  const std::string digest = hash_file(path);
  if (digest != file.sha256) {
    throw Error(EV_ERROR_BUNDLE, "bundle.file_altered")
        .found(shown, " was altered: sha256 ", digest)
        .expected(file.sha256)
        .hint("fetch or ", kExportAgain);
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
        throw Error(EV_ERROR_BUNDLE, "bundle.file_unlisted")
            .found((root / path).string(), " is not in the list of files of bundle.json, but graph \"", graph.name,
                   "\" refers to it")
            .hint(kExportAgain);
      }
    }
  }
}

}  // namespace

fs::path Bundle::graph_path(const std::string& name) const {
  const GraphSpec* graph = spec.find_graph(name);
  if (graph == nullptr) {
    throw Error(EV_ERROR_BUNDLE, "bundle.graph_missing")
        .found("bundle \"", spec.name, "\" has no graph \"", name, "\"")
        .hint(kExportAgain);
  }
  return root / graph->file;
}

Bundle load_bundle(const std::string& folder) {
  const fs::path root(folder);
  const fs::path file = root / kBundleJson;
  std::error_code error;
  if (!fs::is_regular_file(file, error)) {
    throw Error(EV_ERROR_BUNDLE, "bundle.not_found")
        .found("bundle \"", folder, "\": ", fs::is_directory(root, error) ? "no bundle.json in it" : "no such folder")
        .hint("give the folder of a bundle");
  }
  if (fs::file_size(file, error) > kMaxJsonBytes) {
    throw Error(EV_ERROR_BUNDLE).found(file.string(), " is larger than ", kMaxJsonBytes, " bytes").hint(kExportAgain);
  }
  std::ifstream stream(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (!stream) {
    throw Error(EV_ERROR_BUNDLE).found(file.string(), " cannot be read").hint("check its permissions");
  }
  Bundle bundle{root, spec_from_json(text, file.string())};
  for (const FileSpec& listed : bundle.spec.files) verify_file(root, listed);
  refuse_unlisted_weights(root, bundle.spec);
  return bundle;
}

}  // namespace ev
