// The graphs that a host calls, and the check that a bundle's graph table has them.
#pragma once

#include "fields.hpp"
#include "spec.hpp"

namespace ev {

/// Throws EV_ERROR_BUNDLE, through `fields`, unless the bundle has every graph with the inputs and outputs that the
/// loop over graphs passes and takes.
void check_interfaces(const BundleSpec& spec, const Fields& fields);

}  // namespace ev
