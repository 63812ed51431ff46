#include "emulated_cuda.h"

#include <ucontext.h>

#include <stdexcept>
#include <vector>

namespace emulated {

Index thread_index{}, block_index{}, block_size{};

namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr int kWarpSize = 32;

struct Watch {
  const char* begin;
  std::size_t num_bytes;
  std::size_t element_bytes;
  std::uint32_t* reads;
  std::uint32_t* writes;
};

struct Fiber {
  ucontext_t context;
  Index index;
  bool finished;
};

// One exchange after another alternates between two sets of slots: no lane can be two exchanges ahead.
struct Warp {
  float slots[2][kWarpSize];
  int arrived;
  std::uint64_t generation;
};

std::vector<Watch> watches;
std::string first_error;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<char> stacks;
ucontext_t scheduler;
std::size_t current;
bool progressed;
const std::function<void()>* running;

void fail(const std::string& message) {
  if (first_error.empty()) {
    first_error = message + " (block " + std::to_string(block_index.x) + ", thread " + std::to_string(thread_index.x) +
                  ", " + std::to_string(thread_index.y) + ")";
  }
}

void note(const void* address, std::size_t num_bytes, bool is_write) {
  const char* begin = static_cast<const char*>(address);
  if (reinterpret_cast<std::uintptr_t>(address) % num_bytes != 0) {
    fail("an access of " + std::to_string(num_bytes) + " bytes is not aligned to its size");
  }
  for (const Watch& watch : watches) {
    if (begin < watch.begin || begin + num_bytes > watch.begin + watch.num_bytes) continue;
    std::uint32_t* counts = is_write ? watch.writes : watch.reads;
    if (counts == nullptr) {
      fail(is_write ? "a write into an input" : "a read of an output");
      return;
    }
    const std::size_t first = static_cast<std::size_t>(begin - watch.begin) / watch.element_bytes;
    for (std::size_t i = 0; i < num_bytes / watch.element_bytes; ++i) ++counts[first + i];
    return;
  }
  fail(std::string(is_write ? "a write" : "a read") + " outside every buffer");
}

void run_fiber() {
  (*running)();
  fibers[current].finished = true;
  progressed = true;
  swapcontext(&fibers[current].context, &scheduler);
}

}  // namespace

std::string take_error() {
  std::string error;
  error.swap(first_error);
  return error;
}

void watch(const void* data, std::size_t num_bytes, std::size_t element_bytes, std::uint32_t* reads,
           std::uint32_t* writes) {
  watches.push_back({static_cast<const char*>(data), num_bytes, element_bytes, reads, writes});
}

void forget_watches() { watches.clear(); }

void note_read(const void* address, std::size_t num_bytes) { note(address, num_bytes, false); }

void note_write(void* address, std::size_t num_bytes) { note(address, num_bytes, true); }

float exchange(float value, int distance) {
  const std::size_t me = current;
  const std::size_t lane = me % kWarpSize;
  Warp& warp = warps[me / kWarpSize];
  const std::uint64_t generation = warp.generation;
  warp.slots[generation % 2][lane] = value;
  progressed = true;
  if (++warp.arrived == kWarpSize) {
    warp.arrived = 0;
    ++warp.generation;
  }
  while (warp.generation == generation) swapcontext(&fibers[me].context, &scheduler);
  return warp.slots[generation % 2][lane ^ static_cast<std::size_t>(distance)];
}

void launch(std::uint32_t blocks, Index block, const std::function<void()>& kernel) {
  const std::size_t num_threads = static_cast<std::size_t>(block.x) * block.y * block.z;
  if (blocks == 0 || blocks > 0x7fffffffu || num_threads == 0 || num_threads > 1024) {
    fail("a launch of " + std::to_string(blocks) + " blocks of " + std::to_string(num_threads) + " threads");
    return;
  }
  if (block.x % kWarpSize != 0) {
    fail("blocks of " + std::to_string(block.x) + " threads in x; expected a multiple of a warp");
    return;
  }
  block_size = block;
  running = &kernel;
  stacks.resize(num_threads * kStackBytes);
  for (block_index = {}; block_index.x < blocks; ++block_index.x) {
    fibers.assign(num_threads, Fiber{});
    warps.assign((num_threads + kWarpSize - 1) / kWarpSize, Warp{});
    for (std::size_t i = 0; i < num_threads; ++i) {
      const auto x = static_cast<std::uint32_t>(i % block.x);
      fibers[i].index = {x, static_cast<std::uint32_t>(i / block.x), 0};
      getcontext(&fibers[i].context);
      fibers[i].context.uc_stack.ss_sp = &stacks[i * kStackBytes];
      fibers[i].context.uc_stack.ss_size = kStackBytes;
      makecontext(&fibers[i].context, run_fiber, 0);
    }
    for (bool unfinished = true; unfinished;) {
      unfinished = false;
      progressed = false;
      for (current = 0; current < num_threads; ++current) {
        if (fibers[current].finished) continue;
        thread_index = fibers[current].index;
        swapcontext(&scheduler, &fibers[current].context);
        unfinished = unfinished || !fibers[current].finished;
      }
      if (unfinished && !progressed) {
        fail("a shuffle that not every lane of its warp comes to");
        return;
      }
    }
  }
}

}  // namespace emulated
