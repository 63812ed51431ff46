// Just enough of CUDA to run a kernel's own source on the host, lane by lane.
//
// Each thread of a block is a fiber (ucontext) of its own. A shuffle suspends its lane until all 32 lanes of
// the warp have come to the same shuffle, as the hardware does; one that some lane never reaches is an error.
// Reads and writes that the kernel makes are reported to note_read and note_write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#define __global__
#define __launch_bounds__(threads)
#define __grid_constant__

namespace emulated {

struct Index {
  std::uint32_t x, y, z;
};

extern Index thread_index, block_index, block_size;

// The error that stopped the kernel, empty if none did. Reading clears it.
std::string take_error();

// A buffer that the kernel may touch, counted for each element.
void watch(const void* data, std::size_t num_bytes, std::size_t element_bytes, std::uint32_t* reads,
           std::uint32_t* writes);
void forget_watches();

void note_read(const void* address, std::size_t num_bytes);
void note_write(void* address, std::size_t num_bytes);

float exchange(float value, int distance);

// Runs `kernel` once for every thread of every block; x of a block has to be a multiple of the warp's 32.
void launch(std::uint32_t blocks, Index block, const std::function<void()>& kernel);

}  // namespace emulated

#define threadIdx ::emulated::thread_index
#define blockIdx ::emulated::block_index
#define blockDim ::emulated::block_size

inline float __shfl_xor_sync(unsigned mask, float value, int distance) {
  (void)mask;
  return ::emulated::exchange(value, distance);
}
