// The check that a bundle has the graphs that a host calls. The twin of editverse_rt/bundle/interface.py.
#pragma once

#include "fields.hpp"
#include "spec.hpp"

namespace ev {

/// Throws EV_ERROR_BUNDLE, through `fields`, unless the bundle has the graphs of its family, each with the inputs and
/// outputs of the table in tables.hpp, and caches that go from one to the next.
void check_interfaces(const BundleSpec& spec, const Fields& fields);

}  // namespace ev
