// The last failure of each thread, as ev_last_error and ev_last_error_json tell it, and exceptions turned into codes.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>

#include "error.hpp"

namespace ev {

/// Keeps an error for ev_last_error; returns its code.
int remember_error(const Error& error) noexcept;

/// Keeps an error that the library did not raise itself: a code with a text; returns the code.
int remember_error(int code, const char* text) noexcept;

/// See ev_last_error, ev_last_error_json.
const char* last_error_text();
const char* last_error_json();

/// Runs body and turns what it throws into a code and ev_last_error's text.
template <typename Body>
int guard(const Body& body) noexcept {
  try {
    body();
    return EV_OK;
  } catch (const Error& error) {
    return remember_error(error);
  } catch (const std::bad_alloc&) {
    return remember_error(EV_ERROR_MEMORY, "memory ran out; try a smaller size or fewer frames");
  } catch (const std::length_error&) {
    return remember_error(EV_ERROR_MEMORY,
                          "more memory is needed than there can be; try a smaller size or fewer frames");
  } catch (const std::exception& error) {
    return remember_error(EV_ERROR_INTERNAL, error.what());
  } catch (...) {
    return remember_error(EV_ERROR_INTERNAL, "an exception of an unknown type");
  }
}

}  // namespace ev
