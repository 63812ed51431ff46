// Written by cpp/tools/write_tables.py from editverse_rt/bundle/interface.py and editverse_rt/request/options.py;
// change those.
#pragma once

#include <limits>
#include <vector>

namespace ev {

/// Inputs and outputs of one graph as lines "name dtype axes"; interface.py says what the letters mean.
struct Interface {
  const char* graph;
  bool is_optional;
  std::vector<const char*> inputs;
  std::vector<const char*> outputs;
};

/// The graphs of one family, without those named `schedule_...`. control: those that take the place of others, or are
/// added, where the conditioning is "control".
struct FamilyGraphs {
  const char* family;
  std::vector<Interface> graphs;
  std::vector<Interface> control;
};

/// The range of one number of a request. minimum, maximum: inclusive; above: exclusive. expected: as an error says it.
struct OptionRange {
  const char* name;
  double minimum;
  double above;
  double maximum;
  const char* expected;
};

/// The values that a text of a request may have.
struct OptionChoices {
  const char* name;
  std::vector<const char*> choices;
  const char* expected;
};

// clang-format off
inline const std::vector<FamilyGraphs>& family_graphs() {
  static const std::vector<FamilyGraphs> table = {
    {"editverse", {
      {"text_encoder", false,
       {"ids int64 Lt"},
       {"text float32 Lt Dt"}},
      {"vae_encoder_first", false,
       {"frames uint8 1 s*h s*w 3"},
       {"patches float32 1 h w P", "caches"}},
      {"vae_encoder_next", false,
       {"frames uint8 r s*h s*w 3", "caches"},
       {"patches float32 1 h w P", "caches"}},
      {"solver_step", false,
       {"sample float32 Lg P", "history float32 K Lg P", "velocity_cond float32 Lg P", "velocity_uncond float32 Lg P", "guidance float32", "matrix float32 S S1"},
       {"sample_next float32 Lg P", "history_next float32 K Lg P"}},
      {"noise", false,
       {"seed int64", "shape int64 2"},
       {"noise float32 N P"}},
      {"vae_decoder_first", false,
       {"patches float32 1 h w P"},
       {"frames uint8 1 s*h s*w 3", "caches"}},
      {"vae_decoder_next", false,
       {"patches float32 1 h w P", "caches"},
       {"frames uint8 r s*h s*w 3", "caches"}},
      {"transformer", false,
       {"text float32 Lt Dt", "clean float32 Lc Pc", "noisy float32 Lg P", "layout int64 L", "positions int64 L 4", "timestep float32"},
       {"velocity float32 Lg P"}},
      {"keep_known", true,
       {"sample float32 Lg P", "known float32 Lk P", "noise float32 Lg P", "rows int64 Lk", "time float32"},
       {"sample_next float32 Lg P"}},
    }, {
      {"vae_encoder_first", false,
       {"frames uint8 1 s*h s*w 3", "keep float32 1 s*h s*w"},
       {"patches float32 1 h w P", "caches"}},
      {"vae_encoder_next", false,
       {"frames uint8 r s*h s*w 3", "keep float32 r s*h s*w", "caches"},
       {"patches float32 1 h w P", "caches"}},
      {"condition", false,
       {"inactive float32 1 h w P", "reactive float32 1 h w P", "mask float32 s*h s*w"},
       {"clean float32 1 h w Pc"}},
    }},
    {"wan", {
      {"text_encoder", false,
       {"ids int64 Lt"},
       {"text float32 Lt Dt"}},
      {"vae_encoder_first", false,
       {"frames uint8 1 s*h s*w 3"},
       {"patches float32 1 h w P", "caches"}},
      {"vae_encoder_next", false,
       {"frames uint8 r s*h s*w 3", "caches"},
       {"patches float32 1 h w P", "caches"}},
      {"solver_step", false,
       {"sample float32 Lg P", "history float32 K Lg P", "velocity_cond float32 Lg P", "velocity_uncond float32 Lg P", "guidance float32", "matrix float32 S S1"},
       {"sample_next float32 Lg P", "history_next float32 K Lg P"}},
      {"noise", false,
       {"seed int64", "shape int64 2"},
       {"noise float32 N P"}},
      {"vae_decoder_first", false,
       {"patches float32 1 h w P"},
       {"frames uint8 1 s*h s*w 3", "caches"}},
      {"vae_decoder_next", false,
       {"patches float32 1 h w P", "caches"},
       {"frames uint8 r s*h s*w 3", "caches"}},
      {"transformer", false,
       {"text float32 Lt Dt", "clean float32 Lc Pc", "noisy float32 Lg P", "layout int64 L", "positions int64 L 4", "timestep float32"},
       {"velocity float32 Lg P"}},
      {"transformer_2", true,
       {"text float32 Lt Dt", "clean float32 Lc Pc", "noisy float32 Lg P", "layout int64 L", "positions int64 L 4", "timestep float32"},
       {"velocity float32 Lg P"}},
      {"add_noise", true,
       {"sample float32 Lg P", "noise float32 Lg P", "time float64"},
       {"noisy float32 Lg P"}},
      {"keep_known", true,
       {"sample float32 Lg P", "known float32 Lk P", "noise float32 Lg P", "rows int64 Lk", "time float32"},
       {"sample_next float32 Lg P"}},
    }, {
      {"vae_encoder_first", false,
       {"frames uint8 1 s*h s*w 3", "keep float32 1 s*h s*w"},
       {"patches float32 1 h w P", "caches"}},
      {"vae_encoder_next", false,
       {"frames uint8 r s*h s*w 3", "keep float32 r s*h s*w", "caches"},
       {"patches float32 1 h w P", "caches"}},
      {"condition", false,
       {"inactive float32 1 h w P", "reactive float32 1 h w P", "mask float32 s*h s*w"},
       {"clean float32 1 h w Pc"}},
    }},
  };
  return table;
}

/// Of every graph named `schedule_...`.
inline const Interface& schedule_interface() {
  static const Interface schedule = {"schedule_", false,
       {"num_steps int64", "first_step int64", "shift float64", "guidance_scale float64", "guidance_scale_2 float64", "guided_from float64", "guided_until float64"},
       {"times float64 n", "timesteps float64 n", "guidance float64 n", "matrices float64 n S S1", "experts int64 n"}};
  return schedule;
}

constexpr double kUnbounded = std::numeric_limits<double>::infinity();
constexpr OptionRange kOptionRanges[] = {
  {"strength", -kUnbounded, 0.0, 1.0, "a number above 0 to 1"},
  {"num_inference_steps", 1.0, -kUnbounded, 10000.0, "a whole number from 1 to 10000"},
  {"guidance_scale", 0.0, -kUnbounded, 1000.0, "a number from 0 to 1000"},
  {"seed", 0.0, -kUnbounded, 9.223372036854776e+18, "a whole number from 0 to 9223372036854775807"},
  {"num_frames", 1.0, -kUnbounded, 16777216.0, "a whole number from 1 to 16777216"},
  {"fps", -kUnbounded, 0.0, 1000.0, "a number above 0 to 1000"},
  {"start_s", 0.0, -kUnbounded, 1000000000.0, "a number from 0 to 1000000000"},
};

inline const std::vector<OptionChoices>& option_choices() {
  static const std::vector<OptionChoices> table = {
    {"length", {"whole", "cut"}, "one of whole, cut"},
  };
  return table;
}

/// Of a request that does not say its length.
constexpr const char* kDefaultLength = "whole";
// clang-format on

}  // namespace ev
