// Small models that ask ONNX Runtime what it does on this machine: sessions of one node each. The twin of
// editverse_rt/backends/ort_probes.py.
#pragma once

#include <optional>
#include <string>

#include "ort_library.hpp"

namespace ev::ort {

/// Why a session of one Identity node does not run on the provider; nothing if it does. Being built with a provider
/// says nothing about the driver and the libraries that it loads.
std::optional<std::string> find_start_problem(const OrtApi* api, const Provider& provider);

/// Gives what the shared arena holds and nobody uses back to the system. There must be a SharedArena of `env`.
void free_idle_memory(const OrtApi* api, OrtEnv* env);

/// Whether products of uint8 and int8 lose their high bits on this processor. On x86-64 with AVX2 but without VNNI,
/// ONNX Runtime adds pairs of products in 16 bits, which saturate. Sessions with `exact_integers` then give exact sums;
/// it is not set elsewhere, because with VNNI it makes the products slower.
bool saturates_integers(const OrtApi* api, OrtEnv* env);

}  // namespace ev::ort
