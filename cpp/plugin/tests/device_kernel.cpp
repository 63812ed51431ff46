// Kernel one by itself on a GPU, arrays in and out, for accept.py: its bits are compared with the emulation's.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <vector>

#include "rope_launch.h"

extern "C" __attribute__((visibility("default"))) int device_normalize_and_rotate(
    int dtype, const void* const* inputs, void* const* outputs, std::int64_t tokens, std::int32_t num_heads,
    std::int32_t head_dim, const std::int32_t* axis_dims, const float* axis_thetas, float epsilon, char* error,
    std::size_t capacity) {
  const auto elements = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(num_heads * head_dim);
  const std::size_t row_bytes = elements * 2, norm_bytes = static_cast<std::size_t>(head_dim) * 2;
  const std::size_t bytes[] = {
      row_bytes, row_bytes, norm_bytes, norm_bytes, static_cast<std::size_t>(tokens) * ev::plugin::kNumAxes * 8,
      row_bytes, row_bytes};
  std::vector<void*> memory(7, nullptr);
  cudaError_t status = cudaSuccess;
  for (std::size_t i = 0; i < memory.size() && status == cudaSuccess; ++i) {
    if (i < 5 && inputs[i] == nullptr) continue;  // norms that are left out
    status = cudaMalloc(&memory[i], bytes[i]);
    if (i < 5 && status == cudaSuccess) status = cudaMemcpy(memory[i], inputs[i], bytes[i], cudaMemcpyHostToDevice);
  }
  if (status == cudaSuccess) {
    const ev::plugin::RopeTensors tensors = {memory[0], memory[1], memory[2], memory[3],
                                             memory[4], memory[5], memory[6]};
    status = ev::plugin::launch_normalize_and_rotate(
        dtype == 1 ? ev::plugin::StorageType::kFloat16 : ev::plugin::StorageType::kBFloat16,
        ev::plugin::PositionType::kInt64, tensors, ev::plugin::rope_table(axis_dims, axis_thetas), tokens, num_heads,
        head_dim, epsilon, nullptr);
  }
  if (status == cudaSuccess) status = cudaDeviceSynchronize();
  for (std::size_t i = 0; i < 2 && status == cudaSuccess; ++i) {
    status = cudaMemcpy(outputs[i], memory[5 + i], row_bytes, cudaMemcpyDeviceToHost);
  }
  for (void* const block : memory) cudaFree(block);
  std::snprintf(error, capacity, "%s", status == cudaSuccess ? "" : cudaGetErrorString(status));
  return status == cudaSuccess ? 0 : 1;
}
