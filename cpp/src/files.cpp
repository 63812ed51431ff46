#include "files.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "error.hpp"

namespace ev {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kChunkBytes = 1 << 18;

/// Calls take(bytes, count) for each chunk of the file, until it returns false.
template <typename Take>
void read_chunks(const fs::path& path, const Take& take) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  std::vector<char> chunk(kChunkBytes);
  bool wanted = file != nullptr;
  while (wanted) {
    const std::size_t count = std::fread(chunk.data(), 1, chunk.size(), file.get());
    if (count == 0) break;
    wanted = take(chunk.data(), count);
  }
  if (file == nullptr || std::ferror(file.get()) != 0) {
    fail(EV_ERROR_BUNDLE, path.string(), " cannot be read; check its permissions");
  }
}

}  // namespace

std::string hash_file(const fs::path& path) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  bool done = context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  read_chunks(path, [&](const char* bytes, std::size_t count) {
    done = done && EVP_DigestUpdate(context.get(), bytes, count) == 1;
    return done;
  });
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int num_bytes = 0;
  done = done && EVP_DigestFinal_ex(context.get(), digest, &num_bytes) == 1;
  if (!done) fail(EV_ERROR_INTERNAL, "libcrypto could not compute a sha256");
  std::string text;
  for (unsigned int i = 0; i < num_bytes; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

std::vector<std::string> list_files(const fs::path& root) {
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_regular_file(ignored)) paths.push_back(entry->path().lexically_relative(root).generic_string());
  }
  if (error) {
    fail(EV_ERROR_BUNDLE, root.string(), " cannot be listed (", error.message(), "); check its permissions");
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool file_contains(const fs::path& path, const std::string& text) {
  bool found = false;
  std::string window;  // the end of the chunk before, and the chunk
  read_chunks(path, [&](const char* bytes, std::size_t count) {
    window.append(bytes, count);
    found = window.find(text) != std::string::npos;
    window.erase(0, window.size() - std::min(window.size(), text.size()));
    return !found;
  });
  return found;
}

}  // namespace ev
