// Tensors, as they go in and out of graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace ev {

/// A view of elements, and what keeps them alive (nothing where the caller does).
/// dtype: as in the bundle's graph table. data: NULL for an output that the runner is to allocate. on_device: data is
/// an address of the GPU, which only the runner that gave it can read.
struct Tensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  void* data = nullptr;
  std::shared_ptr<void> owner = nullptr;
  bool on_device = false;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  std::int64_t num_elements() const {
    return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, [](auto a, auto b) { return a * b; });
  }
};

/// Bytes of one element, or 0 for a dtype that no graph here has.
inline std::size_t dtype_bytes(const std::string& dtype) {
  if (dtype == "float32" || dtype == "int32") return 4;
  if (dtype == "int64" || dtype == "float64") return 8;
  if (dtype == "float16" || dtype == "bfloat16") return 2;
  return dtype == "uint8" || dtype == "bool" ? 1 : 0;
}

/// A tensor of its own memory, not set to anything, so that pages which are never written cost nothing. Aligned as
/// ONNX Runtime aligns its own: how a kernel walks a buffer, and so how it rounds, must not depend on where it lies.
inline Tensor make_unset_tensor(const std::string& dtype, std::vector<std::int64_t> shape) {
  constexpr std::align_val_t kAlignment{64};
  Tensor tensor{dtype, std::move(shape)};
  const std::size_t num_bytes = static_cast<std::size_t>(tensor.num_elements()) * dtype_bytes(dtype);
  tensor.data = ::operator new(num_bytes + 1, kAlignment);
  tensor.owner = std::shared_ptr<void>(tensor.data, [](void* data) { ::operator delete(data, kAlignment); });
  return tensor;
}

/// A tensor of its own memory, zeroed.
inline Tensor make_tensor(const std::string& dtype, std::vector<std::int64_t> shape) {
  Tensor tensor = make_unset_tensor(dtype, std::move(shape));
  std::memset(tensor.data, 0, static_cast<std::size_t>(tensor.num_elements()) * dtype_bytes(dtype));
  return tensor;
}

/// A tensor of one element or, with `shape`, of a few.
template <typename T>
Tensor make_tensor(const std::string& dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  Tensor tensor = make_tensor(dtype, std::move(shape));
  std::memcpy(tensor.data, values.data(), values.size() * sizeof(T));
  return tensor;
}

/// `count` rows of a tensor's first axis from `begin` on, sharing its memory.
inline Tensor slice_rows(const Tensor& tensor, std::int64_t begin, std::int64_t count) {
  Tensor part = tensor;
  const std::int64_t row = std::accumulate(tensor.shape.begin() + 1, tensor.shape.end(), std::int64_t{1},
                                           [](auto a, auto b) { return a * b; });  // also of a tensor without rows
  part.shape[0] = count;
  part.data = tensor.as<char>() + static_cast<std::size_t>(begin * row) * dtype_bytes(tensor.dtype);
  return part;
}

/// The same elements under another shape.
inline Tensor reshape(Tensor tensor, std::vector<std::int64_t> shape) {
  tensor.shape = std::move(shape);
  return tensor;
}

}  // namespace ev
