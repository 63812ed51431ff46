#include "files.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

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
    throw Error(EV_ERROR_BUNDLE).found(path.string(), " cannot be read").hint("check its permissions");
  }
}

/// A sha256 that is fed piece by piece.
class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }

  void update(std::string_view bytes) { check(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1); }

  std::string finish() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int num_bytes = 0;
    check(EVP_DigestFinal_ex(context_.get(), digest, &num_bytes) == 1);
    std::string text;
    for (unsigned int i = 0; i < num_bytes; ++i) {
      text += "0123456789abcdef"[digest[i] >> 4];
      text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
  }

 private:
  static void check(bool done) {
    if (!done) throw Error(EV_ERROR_INTERNAL).found("libcrypto could not compute a sha256");
  }

  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

}  // namespace

MappedFile::MappedFile(const fs::path& path, int code) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat facts = {};
  bool done = file >= 0 && fstat(file, &facts) == 0;
  if (done && facts.st_size > 0) {
    const auto num_bytes = static_cast<std::size_t>(facts.st_size);
    void* const data = mmap(nullptr, num_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    done = data != MAP_FAILED;
    if (done) data_ = static_cast<const char*>(data), size_ = num_bytes;
  }
  if (file >= 0) close(file);
  if (!done) throw Error(code).found(path.string(), " cannot be read").hint("check its permissions");
}

MappedFile::~MappedFile() {
  if (size_ != 0) munmap(const_cast<char*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, "")), size_(std::exchange(other.size_, 0)) {}

std::string hash_bytes(std::string_view bytes) {
  Digest digest;
  digest.update(bytes);
  return digest.finish();
}

std::string hash_file(const fs::path& path) {
  Digest digest;
  read_chunks(path, [&](const char* bytes, std::size_t count) {
    digest.update({bytes, count});
    return true;
  });
  return digest.finish();
}

std::vector<std::string> list_files(const fs::path& root) {
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_regular_file(ignored)) paths.push_back(entry->path().lexically_relative(root).generic_string());
  }
  if (error) {
    throw Error(EV_ERROR_BUNDLE)
        .found(root.string(), " cannot be listed (", error.message(), ")")
        .hint("check its permissions");
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
