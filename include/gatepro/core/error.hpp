// SPDX-License-Identifier: MIT
// Turns a broken precondition into one exception (or one abort) with a useful message.
#ifndef GATEPRO_CORE_ERROR_HPP
#define GATEPRO_CORE_ERROR_HPP

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "gatepro/core/config.hpp"

/// Called with a `const char*` message when a precondition fails and exceptions are disabled.
/// Define it before the first include, the same in every translation unit, to replace the
/// default (print to stderr, then std::abort). It must not return.
#ifndef GATEPRO_ABORT
#define GATEPRO_ABORT(message) (std::fputs(message, stderr), std::fputc('\n', stderr), std::abort())
#endif

namespace gatepro {

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wweak-vtables"  // there is no unit that could hold the table
#endif
/// Thrown for every precondition that a caller broke: bad shapes, strides, options, ids or a
/// workspace that is too small. Nothing has been written when it is thrown. The message names the
/// function, the rule and the values, e.g.
/// `gatepro::Router: need 1 <= top_k <= num_experts (got top_k=9, num_experts=8)`.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};
#if defined(__clang__)
#pragma clang diagnostic pop
#endif

namespace detail {
inline namespace GATEPRO_ABI {

/// A value quoted in an error message.
class NamedValue {
 public:
  template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
  NamedValue(const char* name, T value)
      : name_(name), integer_(static_cast<long long>(value)), is_unsigned_(std::is_unsigned_v<T>) {}
  NamedValue(const char* name, double value) : name_(name), real_(value), is_integer_(false) {}

  std::string text() const {
    char text[32];
    if (!is_integer_) {
      std::snprintf(text, sizeof text, "%g", real_);
    } else if (is_unsigned_) {
      std::snprintf(text, sizeof text, "%llu", static_cast<unsigned long long>(integer_));
    } else {
      std::snprintf(text, sizeof text, "%lld", integer_);
    }
    return std::string(name_) + "=" + text;
  }

 private:
  const char* name_;
  long long integer_ = 0;
  double real_ = 0;
  bool is_integer_ = true;
  bool is_unsigned_ = false;
};

[[noreturn]] GATEPRO_NOINLINE inline void fail(const char* where, const std::string& rule,
                                               std::initializer_list<NamedValue> got) {
  std::string message = std::string("gatepro::") + where + ": need " + rule;
  const char* separator = " (got ";
  for (const NamedValue& value : got) {
    message += separator + value.text();
    separator = ", ";
  }
  if (got.size() != 0) message += ")";
#if defined(__cpp_exceptions)
  throw Error(message);
#else
  GATEPRO_ABORT(message.c_str());
#endif
}

/// The same, so that those who call it need not make a string each.
[[noreturn]] GATEPRO_NOINLINE inline void fail(const char* where, const char* rule,
                                               std::initializer_list<NamedValue> got) {
  fail(where, std::string(rule), got);
}

inline void need(bool ok, const char* where, const char* rule,
                 std::initializer_list<NamedValue> got = {}) {
  if (!ok) fail(where, rule, got);
}

/// Refuses sizes that checked_product does not multiply.
GATEPRO_NOINLINE inline void check_product(const char* where, const char* rule, std::ptrdiff_t a,
                                           std::ptrdiff_t b) {
  const bool fits =
      a >= 0 && b >= 0 && (a == 0 || b <= (std::numeric_limits<std::ptrdiff_t>::max)() / a);
  need(fits, where, rule, {{"left factor", a}, {"right factor", b}});
}

/// a * b for sizes, refused where one is negative or the product leaves the range of
/// std::ptrdiff_t.
inline std::ptrdiff_t checked_product(const char* where, const char* rule, std::ptrdiff_t a,
                                      std::ptrdiff_t b) {
  constexpr int half = std::numeric_limits<std::ptrdiff_t>::digits / 2;
  const bool both_small =
      ((static_cast<std::size_t>(a) | static_cast<std::size_t>(b)) >> half) == 0;
  if (!both_small) check_product(where, rule, a, b);
  return a * b;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_ERROR_HPP
