// Drives a fuzz target without libFuzzer, with any compiler: fuzz_NAME CORPUS SECONDS [SEED]. Runs every input of the
// corpus, then changed ones until the time is over; an input that reaches code that none did before is changed further.
// An input that ends the program, or takes longer than ten seconds, is written to found-fuzz_NAME-SEED.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t num_bytes);

// What a sanitizer finds ends in SIGABRT, whose handler keeps the input.
extern "C" const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t kMaxBytes = 5000;
constexpr unsigned kMaxSeconds = 10;  // for one input
constexpr const char* kWords[] = {"<video1>",
                                  "<image1>",
                                  "<video2> ",
                                  "video1",
                                  "\"name\"",
                                  "\"shape\"",
                                  "\"dtype\"",
                                  "\"files\"",
                                  "\"graphs\"",
                                  "\"schedules\"",
                                  "float32",
                                  "int64",
                                  "cache_0",
                                  "next_cache_1",
                                  "null",
                                  "true",
                                  "-1",
                                  "0",
                                  "1e999",
                                  "1.5",
                                  "9223372036854775807",
                                  "18446744073709551616",
                                  "{",
                                  "}",
                                  "[",
                                  "]",
                                  "[[",
                                  ",",
                                  ":",
                                  "\"\"",
                                  "\\u0000",
                                  "../",
                                  "\xff"};

// Code that was reached: pairs of places that ran one after the other, by a hash of their addresses.
constexpr std::size_t kNumPairs = 1 << 16;
std::bitset<kNumPairs> reached, reached_now;
std::uintptr_t place_before = 0;

// What a handler of signals needs, which can ask for no memory.
const Bytes* running = nullptr;
char found_name[128] = "";

void keep_running_input(int number) {
  std::fprintf(stderr, number == SIGALRM ? "an input takes too long" : "an input ends the program");
  std::FILE* const file = running == nullptr ? nullptr : std::fopen(found_name, "wb");
  if (file != nullptr) {
    std::fwrite(running->data(), 1, running->size(), file);
    std::fclose(file);
    std::fprintf(stderr, "; it is in %s\n", found_name);
  }
  _exit(1);
}

/// Whether it reached code that no input did before.
bool run(const Bytes& input) {
  // A copy of just its size, so that a sanitizer sees every read beyond it.
  const Bytes exact(input);
  running = &input;
  reached_now.reset();
  place_before = 0;
  alarm(kMaxSeconds);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  alarm(0);
  running = nullptr;
  const bool is_new = (reached_now & ~reached).any();
  reached |= reached_now;
  return is_new;
}

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  std::size_t below(std::size_t count) { return std::uniform_int_distribution<std::size_t>(0, count - 1)(random_); }

  Bytes change(const std::vector<Bytes>& inputs) {
    Bytes input = inputs[below(inputs.size())];
    for (std::size_t left = 1 + below(6); left > 0; --left) change_once(input, inputs[below(inputs.size())]);
    if (input.size() > kMaxBytes) input.resize(kMaxBytes);
    return input;
  }

 private:
  void change_once(Bytes& input, const Bytes& other) {
    const auto at = static_cast<std::ptrdiff_t>(below(input.size() + 1));
    const auto end = at + static_cast<std::ptrdiff_t>(below(input.size() + 1 - static_cast<std::size_t>(at)));
    const auto begin = input.begin();
    switch (below(7)) {
      case 0:  // one bit
        if (!input.empty()) input[below(input.size())] ^= static_cast<std::uint8_t>(1 << below(8));
        break;
      case 1:  // one byte
        if (!input.empty()) input[below(input.size())] = static_cast<std::uint8_t>(below(256));
        break;
      case 2:  // cut out
        input.erase(begin + at, begin + std::min(end, at + 60));
        break;
      case 3: {  // say twice
        const Bytes part(begin + at, begin + std::min(end, at + 200));
        input.insert(begin + at, part.begin(), part.end());
        break;
      }
      case 4: {  // a word of the language
        const std::string word = kWords[below(std::size(kWords))];
        input.insert(begin + at, word.begin(), word.end());
        break;
      }
      case 5: {  // a word in place of what is there
        const std::string word = kWords[below(std::size(kWords))];
        input.erase(begin + at, begin + std::min<std::ptrdiff_t>(at + static_cast<std::ptrdiff_t>(word.size()),
                                                                 static_cast<std::ptrdiff_t>(input.size())));
        input.insert(input.begin() + at, word.begin(), word.end());
        break;
      }
      default: {  // a piece of another input
        const std::size_t from = below(other.size() + 1), count = below(other.size() + 1 - from);
        const Bytes part(other.begin() + static_cast<std::ptrdiff_t>(from),
                         other.begin() + static_cast<std::ptrdiff_t>(from + std::min<std::size_t>(count, 300)));
        input.insert(begin + at, part.begin(), part.end());
      }
    }
  }

  std::mt19937_64 random_;
};

}  // namespace

/// Called by the target's code at every branch (-fsanitize-coverage=trace-pc).
extern "C" void __sanitizer_cov_trace_pc() {
  const auto place = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
  reached_now.set((place ^ (place_before >> 1)) * 0x9E3779B97F4A7C15u >> 48);
  place_before = place;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s CORPUS SECONDS [SEED]\n", argv[0]);
    return 2;
  }
  const std::uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : std::random_device()();
  const std::string name = std::filesystem::path(argv[0]).filename().string();
  std::snprintf(found_name, sizeof found_name, "found-%s-%llu", name.c_str(), static_cast<unsigned long long>(seed));
  signal(SIGABRT, keep_running_input);
  signal(SIGALRM, keep_running_input);

  std::vector<Bytes> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream stream(entry.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    run(inputs.back());
  }
  if (inputs.empty()) {
    std::fprintf(stderr, "there is no input in %s\n", argv[1]);
    return 1;
  }
  const std::size_t num_given = inputs.size();
  Mutator mutator(seed);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[2]));
  std::size_t count = 0;
  for (; std::chrono::steady_clock::now() < until; ++count) {
    Bytes input = mutator.change(inputs);
    if (run(input)) inputs.push_back(std::move(input));
  }
  std::printf("%s, seed %llu: %zu inputs of the corpus, %zu changed ones, %zu kept, %zu pairs of places\n",
              name.c_str(), static_cast<unsigned long long>(seed), num_given, count, inputs.size() - num_given,
              reached.count());
  return 0;
}
