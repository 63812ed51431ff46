// The error that everything below the C interface throws, as data; its text is made from that. The twin of
// editverse_rt/errors.py. docs/errors.md lists the codes.
#pragma once

#include <exception>
#include <functional>
#include <iomanip>
#include <locale>
#include <sstream>
#include <string>

#include "editverse_rt.h"

namespace ev {

/// Numbers appear as printf's %g shows them, as in the Python host.
template <typename... Parts>
std::string join_text(const Parts&... parts) {
  std::ostringstream text;
  text.imbue(std::locale::classic());  // an application may have set another one globally
  (text << ... << parts);
  return text.str();
}

/// A number with two places, as Python's .2f shows it.
inline std::string two_places(double value) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << std::fixed << std::setprecision(2) << value;
  return text.str();
}

/// What to call a field instead of the library's own name, such as `ev_request.seed` for `seed`.
using NameOf = std::function<std::string(const std::string&)>;

/// What an error says. code: for programs; stable. field: the option, or a file's field, that is wrong, by the
/// library's own name, "" for none. found: as a clause without a full stop; with is_value the value of `field` alone.
struct ErrorFacts {
  std::string code;
  std::string field;
  std::string found;
  std::string expected;
  std::string hint;
  bool is_value = false;

  /// The text in one line: what was found, what was expected, what to do.
  std::string describe(const NameOf& name_of = nullptr) const {
    std::string text = is_value ? (name_of ? name_of(field) : field) + " is " + found : found;
    if (!expected.empty()) text += "; expected " + expected;
    if (!hint.empty()) text += "; " + hint;
    return text;
  }
};

/// The code of a class where no finer one is needed.
inline const char* default_code(int code_class) {
  switch (code_class) {
    case EV_ERROR_BUNDLE: return "bundle";
    case EV_ERROR_MEDIA: return "media";
    case EV_ERROR_REQUEST: return "request";
    case EV_ERROR_BACKEND: return "backend";
    case EV_ERROR_CANCELLED: return "cancelled";
    case EV_ERROR_ARGUMENT: return "argument";
    case EV_ERROR_MEMORY: return "memory";
    default: return "internal";
  }
}

/// A failure that the caller can act on:
///     throw Error(EV_ERROR_REQUEST, "request.tag").found("...").expected("...").hint("...");
class Error : public std::exception {
 public:
  /// code_class: one of the EV_ERROR_* codes.
  explicit Error(int code_class, const std::string& code = "", const std::string& field = "") : class_(code_class) {
    facts_.code = code.empty() ? default_code(code_class) : code;
    facts_.field = field;
  }

  template <typename... Parts>
  Error& found(const Parts&... parts) {
    return set(facts_.found, join_text(parts...));
  }

  /// The value of the field, in place of `found`.
  template <typename... Parts>
  Error& value(const Parts&... parts) {
    facts_.is_value = true;
    return found(parts...);
  }

  template <typename... Parts>
  Error& expected(const Parts&... parts) {
    return set(facts_.expected, join_text(parts...));
  }

  template <typename... Parts>
  Error& hint(const Parts&... parts) {
    return set(facts_.hint, join_text(parts...));
  }

  /// The same error where more is known of where it happened: `place` stands in front of what was found.
  Error at(const std::string& place) const {
    Error placed = *this;
    placed.facts_.found = place + facts_.found;
    placed.text_ = placed.facts_.describe();
    return placed;
  }

  /// One of the EV_ERROR_* codes.
  int code() const { return class_; }
  const ErrorFacts& facts() const { return facts_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  Error& set(std::string& part, std::string text) {
    part = std::move(text);
    text_ = facts_.describe();
    return *this;
  }

  int class_;
  ErrorFacts facts_;
  std::string text_;
};

}  // namespace ev
