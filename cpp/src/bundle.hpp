// Bundles on disk: the bundle.json format, and the checks before a byte is used. The twin of
// editverse_rt/bundle/.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "spec.hpp"

namespace ev {

constexpr const char* kBundleJson = "bundle.json";

/// A verified bundle: where it is, and what it says.
struct Bundle {
  std::filesystem::path root;
  BundleSpec spec;

  std::filesystem::path graph_path(const std::string& name) const;
  std::filesystem::path tokenizer_path() const { return root / spec.tokenizer.file; }
};

/// Checks the text of a bundle.json field by field. `where` stands at the head of error messages. Throws
/// EV_ERROR_BUNDLE that names the field, what was found and what was expected.
BundleSpec spec_from_json(std::string_view text, const std::string& where);

/// Opens the bundle in a folder and verifies it: format version, every field, every file's place, size and sha256.
/// Throws EV_ERROR_BUNDLE: nothing there, a field missing or of a wrong type, a newer format version, a path that
/// leaves the bundle, a file missing, cut short or altered, a graph that refers to an unlisted file.
Bundle load_bundle(const std::string& folder);

}  // namespace ev
