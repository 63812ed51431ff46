// The families, found by the name in the bundle. The twin of editverse_rt/families/__init__.py.
#include "error.hpp"
#include "families/base.hpp"

namespace ev {

const Family& family_of(const std::string& name) {
  if (name == "editverse") return editverse_family();
  if (name == "wan") return wan_family();
  throw Error(EV_ERROR_BUNDLE, "bundle.field", "family")
      .found("the bundle is of the family \"", name, "\", which this library cannot run")
      .expected("editverse or wan")
      .hint("use the Python package");
}

}  // namespace ev
