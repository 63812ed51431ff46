// A sampling schedule: where the transformer is evaluated, and the solver's matrix of each step. The twin of
// editverse_rt/bundle/schedule.py.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ev {

/// A matrix of the solver, row by row: S rows of S + 1 numbers.
using Matrix = std::vector<std::vector<double>>;

/// One row a solver step; see ScheduleTable in schedule.py. times: where each step begins. timesteps: what the
/// transformer is told there. experts: which transformer each step runs, for a bundle with several; all 0 otherwise.
struct ScheduleTable {
  std::vector<double> times;
  std::vector<double> timesteps;
  std::vector<double> guidance;
  std::vector<Matrix> matrices;
  std::vector<std::int64_t> experts;
};

/// A named schedule: its table for its own number of steps, and the graph that makes any other. options: the graph's
/// other inputs by name, such as "shift". guidance_scale: of the guided steps.
struct Schedule {
  std::string name;
  std::string graph;
  double guidance_scale = 1;
  ScheduleTable table;
  std::vector<std::pair<std::string, double>> options;

  std::int64_t num_inference_steps() const { return static_cast<std::int64_t>(table.timesteps.size()); }

  /// Whether no graph makes another number of steps.
  bool is_fixed() const { return graph.empty(); }

  /// This schedule with the caller's guidance. Steps that the table leaves unguided (a guidance of 1) stay so; a table
  /// without any guidance takes the caller's everywhere. Throws EV_ERROR_REQUEST below 0 or not finite.
  Schedule with_guidance(double scale) const;
};

}  // namespace ev
